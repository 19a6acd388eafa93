// A journey through kafkajs: create, by default and by first use, produce, consume, commit, resume, delete.
// Usage: node journey.js BOOTSTRAP. Prints "ok STEP" after each step; any failure ends with exit code 1.
const { randomUUID } = require("crypto");
const { CompressionTypes, Kafka, logLevel } = require("kafkajs");

const kafka = new Kafka({ brokers: [process.argv[2]], clientId: "journey", logLevel: logLevel.ERROR, retry: { retries: 8 } });
const run = randomUUID().slice(0, 8);
const [topic, byDefault, firstUse] = [`js-${run}`, `js-default-${run}`, `js-first-${run}`];
const groupId = `js-group-${run}`;
const COUNT = 200;
const ok = (step) => console.log("ok", step);
const assert = (condition, what) => {
  if (!condition) throw new Error(what);
};
const messages = () => Array.from({ length: COUNT }, (_, i) => ({ key: `k${i}`, value: `v${i}`, headers: { n: String(i) } }));

async function produce(to, options, sendOptions) {
  const producer = kafka.producer(options);
  await producer.connect();
  await producer.send({ topic: to, messages: messages(), ...sendOptions });
  await producer.disconnect();
}

async function consume(from, wanted) {
  const consumer = kafka.consumer({ groupId });
  await consumer.connect();
  await consumer.subscribe({ topic: from, fromBeginning: true });
  const seen = [];
  await new Promise((resolve, reject) => {
    const deadline = setTimeout(() => reject(new Error(`only ${seen.length} of ${wanted} records came`)), 60000);
    consumer
      .run({
        autoCommit: true,
        autoCommitThreshold: 1,
        eachMessage: async ({ message }) => {
          seen.push([message.key.toString(), message.value.toString(), message.headers.n.toString()]);
          if (seen.length === wanted) {
            clearTimeout(deadline);
            resolve();
          }
        },
      })
      .catch(reject);
  });
  await consumer.disconnect();
  return seen;
}

async function main() {
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: [{ topic, numPartitions: 3, replicationFactor: 1 }], waitForLeaders: true });
  ok("create");
  await admin.createTopics({ topics: [{ topic: byDefault, numPartitions: 2, replicationFactor: -1 }], waitForLeaders: true });
  ok("create-default-replication");
  await produce(topic, {}, { acks: -1 });
  ok("produce");
  await produce(byDefault, {}, { compression: CompressionTypes.GZIP });
  ok("produce-compressed");
  await produce(byDefault, { idempotent: true, maxInFlightRequests: 1 });
  ok("produce-idempotent");
  await produce(firstUse, { allowAutoTopicCreation: true });
  ok("first-use");
  const expected = messages().map((m) => [m.key, m.value, m.headers.n]);
  const seen = await consume(topic, COUNT);
  assert(JSON.stringify(seen.sort()) === JSON.stringify(expected.sort()), "other records came than were sent");
  ok("consume");
  const [{ partitions }] = await admin.fetchOffsets({ groupId, topics: [topic] });
  const committed = partitions.reduce((sum, p) => sum + Math.max(0, Number(p.offset)), 0);
  assert(committed === COUNT, `committed ${committed} of ${COUNT}`);
  ok("commit");
  await produce(topic);
  assert((await consume(topic, COUNT)).length === COUNT, "the group did not resume");
  ok("resume");
  await admin.deleteTopics({ topics: [topic, byDefault, firstUse] });
  ok("delete");
  await admin.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
