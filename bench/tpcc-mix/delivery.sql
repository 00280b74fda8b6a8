\set w random(1, 4)
\set carrier random(1, 10)
SELECT delivery(:w, :carrier);
