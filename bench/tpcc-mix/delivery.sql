\set carrier random(1, 10)
SELECT delivery(:carrier);
