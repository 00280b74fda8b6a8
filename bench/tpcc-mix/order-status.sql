\set w random(1, 4)
\set d random(1, 10)
\set c random(1, 1000)
SELECT o.o_id, l.* FROM orders o JOIN order_line l ON l.ol_w_id = o.o_w_id AND l.ol_d_id = o.o_d_id AND l.ol_o_id = o.o_id WHERE o.o_w_id = :w AND o.o_d_id = :d AND o.o_c_id = :c ORDER BY o.o_id DESC LIMIT 15;
