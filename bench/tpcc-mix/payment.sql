\set d random(1, 10)
\set cents random(100, 500000)
SELECT payment(:d, :cents / 100.0);
