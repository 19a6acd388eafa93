"""A journey through librdkafka (confluent-kafka): create, by default and by first use, produce, consume, commit, resume, delete.

Usage: librdkafka_journey.py BOOTSTRAP. With JOURNEY_TLS=TRUSTED.pem:IDENTITY.pem it goes over TLS. Prints "ok STEP" after each step; any failure is an exception.
"""

import os
import sys
import time
import uuid

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

connecting = {"bootstrap.servers": sys.argv[1]}
if "JOURNEY_TLS" in os.environ:
    trusted, identity = os.environ["JOURNEY_TLS"].split(":")
    connecting |= {"security.protocol": "ssl", "ssl.ca.location": trusted}
    connecting |= {"ssl.certificate.location": identity, "ssl.key.location": identity}
run = uuid.uuid4().hex[:8]
topic, by_default, first_use = f"rd-{run}", f"rd-default-{run}", f"rd-first-{run}"
group = f"rd-group-{run}"
COUNT = 300


def ok(step):
    print("ok", step, flush=True)


admin = AdminClient(connecting)
for future in admin.create_topics([NewTopic(topic, 3, 1, config={"retention.ms": "86400000"})]).values():
    future.result(20)
ok("create")
for future in admin.create_topics([NewTopic(by_default, 2, -1)]).values():
    future.result(20)
ok("create-default-replication")


def produce(to, config):
    failures, done = [], []
    producer = Producer({**connecting, **config})
    for i in range(COUNT):
        producer.produce(
            to, key=f"k{i}", value=f"v{i}", headers={"n": str(i)}, on_delivery=lambda e, m: (failures if e else done).append(e or m.offset())
        )
        producer.poll(0)
    assert producer.flush(30) == 0, "records left in the queue"
    assert not failures, failures[0]
    assert len(done) == COUNT


produce(topic, {"acks": "all"})
ok("produce")
for codec in ("gzip", "snappy", "lz4", "zstd"):
    produce(by_default, {"compression.type": codec, "linger.ms": 50})
ok("produce-compressed")
produce(by_default, {"enable.idempotence": True})
ok("produce-idempotent")
produce(first_use, {"allow.auto.create.topics": True})
ok("first-use")


def consume(from_topic, wanted, group_id, commit):
    consumer = Consumer(
        {**connecting, "group.id": group_id, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )
    consumer.subscribe([from_topic])
    seen, deadline = [], time.monotonic() + 40
    while len(seen) < wanted and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is None:
            continue
        assert message.error() is None, message.error()
        seen.append((message.key().decode(), message.value().decode(), dict(message.headers() or [])))
    if commit:
        consumer.commit(asynchronous=False)
    consumer.close()
    return seen


expected = sorted((f"k{i}", f"v{i}", {"n": str(i).encode()}) for i in range(COUNT))
assert sorted(consume(topic, COUNT, group, True), key=lambda r: r[0]) == sorted(expected, key=lambda r: r[0])
ok("consume")
assert len(consume(by_default, 5 * COUNT, group + "-z", False)) == 5 * COUNT
ok("consume-compressed")

committed = Consumer({**connecting, "group.id": group})
offsets = committed.committed([TopicPartition(topic, p) for p in range(3)], timeout=20)
assert sum(o.offset for o in offsets) == COUNT, offsets
committed.close()
ok("commit")

produce(topic, {"acks": "1"})
assert len(consume(topic, COUNT, group, True)) == COUNT
ok("resume")

described = admin.describe_consumer_groups([group])[group].result(20)
assert described.group_id == group
assert any(g.group_id == group for g in admin.list_consumer_groups().result(20).valid)
ok("describe-group")
for future in admin.delete_topics([topic, by_default, first_use]).values():
    future.result(20)
ok("delete")
