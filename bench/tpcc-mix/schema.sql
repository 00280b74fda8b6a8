-- SPDX-License-Identifier: GPL-2.0-or-later
-- The tables of TPC-C and their first population (revision 5.11, clauses 1.3, 4.3.2 and 4.3.3.1) for one warehouse.
\set ON_ERROR_STOP on
CREATE TABLE warehouse (w_id int PRIMARY KEY, w_name text, w_street_1 text, w_street_2 text, w_city text, w_state char(2),
  w_zip char(9), w_tax numeric(4,4), w_ytd numeric(12,2));
CREATE TABLE district (d_w_id int, d_id int, d_name text, d_street_1 text, d_street_2 text, d_city text, d_state char(2),
  d_zip char(9), d_tax numeric(4,4), d_ytd numeric(12,2), d_next_o_id int, PRIMARY KEY (d_w_id, d_id));
CREATE TABLE customer (c_w_id int, c_d_id int, c_id int, c_first text, c_middle char(2), c_last text, c_street_1 text,
  c_street_2 text, c_city text, c_state char(2), c_zip char(9), c_phone char(16), c_since timestamp, c_credit char(2),
  c_credit_lim numeric(12,2), c_discount numeric(4,4), c_balance numeric(12,2), c_ytd_payment numeric(12,2),
  c_payment_cnt int, c_delivery_cnt int, c_data text, PRIMARY KEY (c_w_id, c_d_id, c_id));
CREATE TABLE history (h_c_id int, h_c_d_id int, h_c_w_id int, h_d_id int, h_w_id int, h_date timestamp,
  h_amount numeric(6,2), h_data text);
CREATE TABLE item (i_id int PRIMARY KEY, i_im_id int, i_name text, i_price numeric(5,2), i_data text);
CREATE TABLE stock (s_w_id int, s_i_id int, s_quantity int,
  s_dist_01 char(24), s_dist_02 char(24), s_dist_03 char(24), s_dist_04 char(24), s_dist_05 char(24), s_dist_06
  char(24), s_dist_07 char(24), s_dist_08 char(24), s_dist_09 char(24), s_dist_10 char(24),
  s_ytd int, s_order_cnt int, s_remote_cnt int, s_data text, PRIMARY KEY (s_w_id, s_i_id));
CREATE TABLE orders (o_w_id int, o_d_id int, o_id int, o_c_id int, o_entry_d timestamp, o_carrier_id int,
  o_ol_cnt int, o_all_local int, PRIMARY KEY (o_w_id, o_d_id, o_id));
CREATE TABLE new_order (no_w_id int, no_d_id int, no_o_id int, PRIMARY KEY (no_w_id, no_d_id, no_o_id));
CREATE TABLE order_line (ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, ol_i_id int, ol_supply_w_id int,
  ol_delivery_d timestamp, ol_quantity int, ol_amount numeric(6,2), ol_dist_info char(24),
  PRIMARY KEY (ol_w_id, ol_d_id, ol_o_id, ol_number));

CREATE FUNCTION uniform(low int, high int) RETURNS int LANGUAGE sql VOLATILE AS $$
  SELECT low + floor(random() * (high - low + 1))::int $$;
-- 86 letters and digits, as random as SHA-512; a-strings are pieces of it.
CREATE FUNCTION alnum() RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT translate(encode(sha512(random()::text::bytea), 'base64'), E'+/=\n', 'aZ') $$;
CREATE FUNCTION a_string(low int, high int) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT left(alnum(), uniform(low, high)) $$;
CREATE FUNCTION n_string(len int) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT right(right(uniform(100000000, 199999999)::text, 8) || right(uniform(100000000, 199999999)::text, 8), len) $$;
CREATE FUNCTION a_data(low int, high int) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT CASE WHEN random() < 0.1 THEN overlay(s PLACING 'ORIGINAL' FROM uniform(1, length(s) - 7)) ELSE s END
  FROM (SELECT a_string(low, high) AS s OFFSET 0) x $$;
CREATE FUNCTION nurand(a int, c int, low int, high int) RETURNS int LANGUAGE sql VOLATILE AS $$
  SELECT ((uniform(0, a) | uniform(low, high)) + c) % (high - low + 1) + low $$;
CREATE FUNCTION last_name(n int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
  SELECT s[n / 100 + 1] || s[n / 10 % 10 + 1] || s[n % 10 + 1]
  FROM (SELECT '{BAR,OUGHT,ABLE,PRI,PRES,ESE,ANTI,CALLY,ATION,EING}'::text[] AS s) x $$;

INSERT INTO warehouse SELECT 1, a_string(6, 10), a_string(10, 20), a_string(10, 20), a_string(10, 20), a_string(2, 2),
  n_string(4) || '11111', random() * 0.2, 300000;
INSERT INTO district SELECT 1, d, a_string(6, 10), a_string(10, 20), a_string(10, 20), a_string(10, 20), a_string(2, 2),
  n_string(4) || '11111', random() * 0.2, 30000, 3001 FROM generate_series(1, 10) d;
INSERT INTO item SELECT i, uniform(1, 10000), a_string(14, 24), uniform(100, 10000) / 100.0, a_data(26, 50)
  FROM generate_series(1, 100000) i;
INSERT INTO stock SELECT 1, i, uniform(10, 100),
  a_string(24, 24), a_string(24, 24), a_string(24, 24), a_string(24, 24), a_string(24, 24),
  a_string(24, 24), a_string(24, 24), a_string(24, 24), a_string(24, 24), a_string(24, 24),
  0, 0, 0, a_data(26, 50)
  FROM generate_series(1, 100000) i;
INSERT INTO customer SELECT 1, d, c, a_string(8, 16), 'OE', last_name(CASE WHEN c <= 1000 THEN c - 1 ELSE nurand(255, 123, 0, 999) END),
  a_string(10, 20), a_string(10, 20), a_string(10, 20), a_string(2, 2), n_string(4) || '11111', n_string(16), now(),
  CASE WHEN random() < 0.1 THEN 'BC' ELSE 'GC' END, 50000, random() * 0.5, -10, 10, 1, 0,
  left(alnum() || alnum() || alnum() || alnum() || alnum() || alnum(), uniform(300, 500))
  FROM generate_series(1, 10) d, generate_series(1, 3000) c;
INSERT INTO history SELECT c, d, 1, d, 1, now(), 10, a_string(12, 24)
  FROM generate_series(1, 10) d, generate_series(1, 3000) c;
INSERT INTO orders SELECT 1, d, row_number() OVER (PARTITION BY d ORDER BY random()), c, now(), NULL, uniform(5, 15), 1
  FROM generate_series(1, 10) d, generate_series(1, 3000) c;
UPDATE orders SET o_carrier_id = uniform(1, 10) WHERE o_id < 2101;
INSERT INTO order_line SELECT 1, o_d_id, o_id, n, uniform(1, 100000), 1, CASE WHEN o_id < 2101 THEN o_entry_d END, 5,
  CASE WHEN o_id < 2101 THEN 0 ELSE uniform(1, 999999) / 100.0 END, a_string(24, 24)
  FROM (SELECT * FROM orders ORDER BY o_d_id, o_id) o, generate_series(1, o_ol_cnt) n;
INSERT INTO new_order SELECT 1, o_d_id, o_id FROM orders WHERE o_id > 2100 ORDER BY o_d_id, o_id;
CREATE INDEX customer_last ON customer (c_w_id, c_d_id, c_last, c_first);
CREATE INDEX orders_customer ON orders (o_w_id, o_d_id, o_c_id, o_id);

-- The middle one of those with that name, by first name (clause 2.5.2.2).
CREATE FUNCTION by_name(d int, name text) RETURNS int LANGUAGE sql AS $$
  SELECT ids[(array_length(ids, 1) + 1) / 2] FROM (SELECT array_agg(c_id ORDER BY c_first) AS ids FROM customer
    WHERE c_w_id = 1 AND c_d_id = d AND c_last = name) x $$;
CREATE FUNCTION some_customer(d int) RETURNS int LANGUAGE sql VOLATILE AS $$
  SELECT CASE WHEN random() < 0.6 THEN by_name(d, last_name(nurand(255, 223, 0, 999))) ELSE nurand(1023, 259, 1, 3000) END $$;

-- The loops of the specification, in the server (clauses 2.4.2, 2.5.2, 2.7.4).
CREATE FUNCTION new_order(d int, lines int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE o int; c int := nurand(1023, 259, 1, 3000); it int; price numeric; s stock; qty int; n int := 0;
BEGIN
  PERFORM w_tax FROM warehouse WHERE w_id = 1;
  UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = 1 AND d_id = d RETURNING d_next_o_id - 1 INTO o;
  PERFORM c_discount, c_last, c_credit FROM customer WHERE c_w_id = 1 AND c_d_id = d AND c_id = c;
  INSERT INTO orders VALUES (1, d, o, c, now(), NULL, lines, 1);
  INSERT INTO new_order VALUES (1, d, o);
  -- In ascending order, so that two orders never wait for each other.
  FOR it IN SELECT nurand(8191, 7911, 1, 100000) AS i FROM generate_series(1, lines) ORDER BY i LOOP
    n := n + 1;
    qty := uniform(1, 10);
    SELECT i_price INTO price FROM item WHERE i_id = it;
    UPDATE stock SET s_quantity = CASE WHEN s_quantity >= qty + 10 THEN s_quantity - qty ELSE s_quantity - qty + 91 END,
      s_ytd = s_ytd + qty, s_order_cnt = s_order_cnt + 1 WHERE s_w_id = 1 AND s_i_id = it RETURNING * INTO s;
    INSERT INTO order_line VALUES (1, d, o, n, it, 1, NULL, qty, least(9999, qty * price),
      (ARRAY[s.s_dist_01, s.s_dist_02, s.s_dist_03, s.s_dist_04, s.s_dist_05,
             s.s_dist_06, s.s_dist_07, s.s_dist_08, s.s_dist_09, s.s_dist_10])[d]);
  END LOOP;
  RETURN o;
END $$;
CREATE FUNCTION payment(d int, amount numeric) RETURNS void LANGUAGE plpgsql AS $$
DECLARE c int := some_customer(d); place text;
BEGIN
  UPDATE warehouse SET w_ytd = w_ytd + amount WHERE w_id = 1 RETURNING w_name INTO place;
  UPDATE district SET d_ytd = d_ytd + amount WHERE d_w_id = 1 AND d_id = d RETURNING place || '    ' || d_name INTO place;
  UPDATE customer SET c_balance = c_balance - amount, c_ytd_payment = c_ytd_payment + amount,
    c_payment_cnt = c_payment_cnt + 1, c_data = CASE WHEN c_credit = 'BC'
      THEN left(concat_ws(' ', c, d, 1, d, 1, amount) || c_data, 500) ELSE c_data END
    WHERE c_w_id = 1 AND c_d_id = d AND c_id = c;
  INSERT INTO history VALUES (c, d, 1, d, 1, now(), amount, place);
END $$;
CREATE FUNCTION delivery(carrier int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE o int; c int; total numeric;
BEGIN
  FOR d IN 1..10 LOOP
    DELETE FROM new_order WHERE no_w_id = 1 AND no_d_id = d AND no_o_id =
      (SELECT min(no_o_id) FROM new_order WHERE no_w_id = 1 AND no_d_id = d) RETURNING no_o_id INTO o;
    CONTINUE WHEN o IS NULL;
    UPDATE orders SET o_carrier_id = carrier WHERE o_w_id = 1 AND o_d_id = d AND o_id = o RETURNING o_c_id INTO c;
    UPDATE order_line SET ol_delivery_d = now() WHERE ol_w_id = 1 AND ol_d_id = d AND ol_o_id = o;
    SELECT sum(ol_amount) INTO total FROM order_line WHERE ol_w_id = 1 AND ol_d_id = d AND ol_o_id = o;
    UPDATE customer SET c_balance = c_balance + total, c_delivery_cnt = c_delivery_cnt + 1
      WHERE c_w_id = 1 AND c_d_id = d AND c_id = c;
  END LOOP;
END $$;
VACUUM ANALYZE;
CHECKPOINT;
