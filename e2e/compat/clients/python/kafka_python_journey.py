"""A journey through kafka-python: create, by default and by first use, produce, consume, commit, resume, delete.

Usage: kafka_python_journey.py BOOTSTRAP. Prints "ok STEP" after each step; any failure is an exception.
"""

import sys
import time
import uuid

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

bootstrap = sys.argv[1]
run = uuid.uuid4().hex[:8]
topic, by_default, first_use = f"py-{run}", f"py-default-{run}", f"py-first-{run}"
group = f"py-group-{run}"
COUNT = 200


def ok(step):
    print("ok", step, flush=True)


admin = KafkaAdminClient(bootstrap_servers=bootstrap)
admin.create_topics([NewTopic(topic, 3, 1)])
ok("create")
admin.create_topics([NewTopic(by_default, 2, -1)])
ok("create-default-replication")


def produce(to, **config):
    producer = KafkaProducer(bootstrap_servers=bootstrap, **config)
    futures = [producer.send(to, key=b"k%d" % i, value=b"v%d" % i, headers=[("n", b"%d" % i)]) for i in range(COUNT)]
    producer.flush(30)
    for future in futures:
        future.get(30)
    producer.close()


produce(topic, acks="all")
ok("produce")
produce(by_default, compression_type="gzip")
ok("produce-compressed")
produce(first_use)
ok("first-use")


def consume(from_topic, wanted, commit):
    consumer = KafkaConsumer(
        from_topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    seen, deadline = [], time.monotonic() + 40
    while len(seen) < wanted and time.monotonic() < deadline:
        for records in consumer.poll(500).values():
            seen += [(r.key, r.value, r.headers) for r in records]
    if commit:
        consumer.commit()
    consumer.close()
    return seen


expected = sorted((b"k%d" % i, b"v%d" % i) for i in range(COUNT))
assert sorted((k, v) for k, v, _ in consume(topic, COUNT, True)) == expected
ok("consume")
check = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group)
assert sum(check.committed(TopicPartition(topic, p)) or 0 for p in range(3)) == COUNT
check.close()
ok("commit")
produce(topic)
assert len(consume(topic, COUNT, True)) == COUNT
ok("resume")
admin.delete_topics([topic, by_default, first_use])
ok("delete")
admin.close()
