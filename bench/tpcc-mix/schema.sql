-- SPDX-License-Identifier: GPL-2.0-or-later
-- A TPC-C-like schema: its tables, row sizes and keys, 4 warehouses, loaded by the server itself.
\set ON_ERROR_STOP on
CREATE TABLE warehouse (w_id int PRIMARY KEY, w_name text, w_address text, w_tax numeric(4,4), w_ytd numeric(12,2));
CREATE TABLE district (d_w_id int, d_id int, d_name text, d_address text, d_tax numeric(4,4),
  d_ytd numeric(12,2), d_next_o_id int, PRIMARY KEY (d_w_id, d_id));
CREATE TABLE customer (c_w_id int, c_d_id int, c_id int, c_first text, c_last text, c_address text,
  c_since timestamp, c_credit char(2), c_discount numeric(4,4), c_balance numeric(12,2),
  c_ytd_payment numeric(12,2), c_payment_cnt int, c_delivery_cnt int, c_data text,
  PRIMARY KEY (c_w_id, c_d_id, c_id));
CREATE TABLE history (h_c_id int, h_c_d_id int, h_c_w_id int, h_d_id int, h_w_id int, h_date timestamp,
  h_amount numeric(6,2), h_data text);
CREATE TABLE item (i_id int PRIMARY KEY, i_im_id int, i_name text, i_price numeric(5,2), i_data text);
CREATE TABLE stock (s_w_id int, s_i_id int, s_quantity int, s_dist text, s_ytd int, s_order_cnt int,
  s_remote_cnt int, s_data text, PRIMARY KEY (s_w_id, s_i_id));
CREATE TABLE orders (o_w_id int, o_d_id int, o_id int, o_c_id int, o_entry_d timestamp, o_carrier_id int,
  o_ol_cnt int, PRIMARY KEY (o_w_id, o_d_id, o_id));
CREATE TABLE new_order (no_w_id int, no_d_id int, no_o_id int, PRIMARY KEY (no_w_id, no_d_id, no_o_id));
CREATE TABLE order_line (ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, ol_i_id int,
  ol_delivery_d timestamp, ol_quantity int, ol_amount numeric(6,2), ol_dist_info text,
  PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number));

CREATE FUNCTION noise(len int) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT substr(string_agg(md5(random()::text), ''), 1, len) FROM generate_series(1, len / 32 + 1) $$;

INSERT INTO warehouse SELECT w, noise(10), noise(60), 0.1, 300000 FROM generate_series(1, 4) w;
INSERT INTO district SELECT w, d, noise(10), noise(60), 0.1, 30000, 301
  FROM generate_series(1, 4) w, generate_series(1, 10) d;
INSERT INTO item SELECT i, i % 10000, md5(i::text), 1 + i % 100, md5((i * 7)::text) FROM generate_series(1, 20000) i;
INSERT INTO customer SELECT w, d, c, md5((c * 3)::text), md5((c % 1000)::text), md5((c * 5)::text) || md5((c * 11)::text),
  now(), 'GC', 0.1, -10, 10, 1, 0, repeat(md5((c * d * w)::text), 10)
  FROM generate_series(1, 4) w, generate_series(1, 10) d, generate_series(1, 1000) c;
INSERT INTO stock SELECT w, i, 10 + i % 91, md5(i::text) || md5((i + w)::text) || md5((i * w)::text) || md5((i - w)::text), 0, 0, 0, md5((i * 13)::text)
  FROM generate_series(1, 4) w, generate_series(1, 20000) i;
INSERT INTO orders SELECT w, d, o, 1 + (o * 7) % 1000, now(), 1, 10
  FROM generate_series(1, 4) w, generate_series(1, 10) d, generate_series(1, 300) o;
INSERT INTO order_line SELECT w, d, o, n, 1 + (o * n * 31) % 20000, now(), 5, 10.5, md5((o * n)::text)
  FROM generate_series(1, 4) w, generate_series(1, 10) d, generate_series(1, 300) o, generate_series(1, 10) n;
CREATE INDEX customer_last ON customer (c_w_id, c_d_id, c_last);
CREATE INDEX orders_customer ON orders (o_w_id, o_d_id, o_c_id);

-- new-order's lines: the loop of the specification, in the server.
CREATE FUNCTION new_order(w int, d int, c int, lines int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE o int; item_id int; price numeric; qty int; dist text;
BEGIN
  UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = w AND d_id = d RETURNING d_next_o_id - 1 INTO o;
  PERFORM c_discount FROM customer WHERE c_w_id = w AND c_d_id = d AND c_id = c;
  INSERT INTO orders VALUES (w, d, o, c, now(), NULL, lines);
  INSERT INTO new_order VALUES (w, d, o);
  FOR n IN 1..lines LOOP
    item_id := 1 + (random() * 19999)::int;
    qty := 1 + (random() * 9)::int;
    SELECT i_price INTO price FROM item WHERE i_id = item_id;
    UPDATE stock SET s_quantity = CASE WHEN s_quantity > qty + 10 THEN s_quantity - qty ELSE s_quantity - qty + 91 END,
      s_ytd = s_ytd + qty, s_order_cnt = s_order_cnt + 1
      WHERE s_w_id = w AND s_i_id = item_id RETURNING substr(s_dist, 1, 24) INTO dist;
    INSERT INTO order_line VALUES (w, d, o, n, item_id, NULL, qty, least(9999, qty * price), dist);
  END LOOP;
  RETURN o;
END $$;
CREATE FUNCTION delivery(w int, carrier int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE o int; c int; total numeric;
BEGIN
  FOR d IN 1..10 LOOP
    DELETE FROM new_order WHERE no_w_id = w AND no_d_id = d AND no_o_id =
      (SELECT min(no_o_id) FROM new_order WHERE no_w_id = w AND no_d_id = d) RETURNING no_o_id INTO o;
    CONTINUE WHEN o IS NULL;
    UPDATE orders SET o_carrier_id = carrier WHERE o_w_id = w AND o_d_id = d AND o_id = o RETURNING o_c_id INTO c;
    UPDATE order_line SET ol_delivery_d = now() WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = o;
    SELECT sum(ol_amount) INTO total FROM order_line WHERE ol_w_id = w AND ol_d_id = d AND ol_o_id = o;
    UPDATE customer SET c_balance = c_balance + total, c_delivery_cnt = c_delivery_cnt + 1
      WHERE c_w_id = w AND c_d_id = d AND c_id = c;
  END LOOP;
END $$;
VACUUM ANALYZE;
CHECKPOINT;
