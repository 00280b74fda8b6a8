\set d random(1, 10)
\set threshold random(10, 20)
SELECT count(DISTINCT s_i_id) FROM order_line JOIN stock ON s_w_id = ol_w_id AND s_i_id = ol_i_id WHERE ol_w_id = 1 AND ol_d_id = :d AND ol_o_id >= (SELECT d_next_o_id - 20 FROM district WHERE d_w_id = 1 AND d_id = :d) AND s_quantity < :threshold;
