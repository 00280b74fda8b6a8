\set d random(1, 10)
\set lines random(5, 15)
SELECT new_order(:d, :lines);
