\set d random(1, 10)
SELECT l.* FROM (SELECT o_d_id, o_id FROM orders WHERE o_w_id = 1 AND o_d_id = :d AND o_c_id = (SELECT some_customer(:d)) ORDER BY o_id DESC LIMIT 1) o JOIN order_line l ON l.ol_w_id = 1 AND l.ol_d_id = o_d_id AND l.ol_o_id = o_id;
