\set w random(1, 4)
\set d random(1, 10)
\set c random(1, 1000)
\set n random(5, 15)
SELECT new_order(:w, :d, :c, :n);
