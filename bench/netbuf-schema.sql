-- SPDX-License-Identifier: GPL-2.0-or-later
-- The tables that TPC-C's new-order touches, for 4 warehouses and fewer items: `remus-bench netbuf` gives each of its
-- clients a district of its own, as terminals have them.
\set ON_ERROR_STOP on
CREATE TABLE warehouse (w_id int PRIMARY KEY, w_name text, w_tax numeric(4,4), w_ytd numeric(12,2));
CREATE TABLE district (d_w_id int, d_id int, d_name text, d_tax numeric(4,4), d_ytd numeric(12,2), d_next_o_id int,
  PRIMARY KEY (d_w_id, d_id));
CREATE TABLE customer (c_w_id int, c_d_id int, c_id int, c_first text, c_last text, c_credit char(2), c_discount
  numeric(4,4), c_balance numeric(12,2), c_data text, PRIMARY KEY (c_w_id, c_d_id, c_id));
CREATE TABLE item (i_id int PRIMARY KEY, i_im_id int, i_name text, i_price numeric(5,2), i_data text);
CREATE TABLE stock (s_w_id int, s_i_id int, s_quantity int, s_dist text, s_ytd int, s_order_cnt int, s_data text,
  PRIMARY KEY (s_w_id, s_i_id));
CREATE TABLE orders (o_w_id int, o_d_id int, o_id int, o_c_id int, o_entry_d timestamp, o_carrier_id int, o_ol_cnt int,
  PRIMARY KEY (o_w_id, o_d_id, o_id));
CREATE TABLE new_order (no_w_id int, no_d_id int, no_o_id int, PRIMARY KEY (no_w_id, no_d_id, no_o_id));
CREATE TABLE order_line (ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, ol_i_id int, ol_delivery_d timestamp,
  ol_quantity int, ol_amount numeric(6,2), ol_dist_info text, PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number));
INSERT INTO warehouse SELECT w, 'w' || w, 0.1, 300000 FROM generate_series(1, 4) w;
INSERT INTO district SELECT w, d, 'd' || d, 0.1, 30000, 1 FROM generate_series(1, 4) w, generate_series(1, 10) d;
INSERT INTO item SELECT i, i % 10000, md5(i::text), 1 + i % 100, md5((i * 7)::text) FROM generate_series(1, 20000) i;
INSERT INTO customer SELECT w, d, c, md5((c * 3)::text), md5((c % 1000)::text), 'GC', 0.1, -10,
  repeat(md5((c * d * w)::text), 10) FROM generate_series(1, 4) w, generate_series(1, 10) d, generate_series(1, 1000) c;
INSERT INTO stock SELECT w, i, 10 + i % 91, md5(i::text) || md5((i + w)::text), 0, 0, md5((i * 13)::text)
  FROM generate_series(1, 4) w, generate_series(1, 20000) i;
VACUUM ANALYZE;
CHECKPOINT;
