// A journey through franz-go: create, by default and by first use, produce, consume, commit, resume, delete.
// Usage: journey BOOTSTRAP. With JOURNEY_TLS=TRUSTED.pem:IDENTITY.pem it goes over TLS. Prints "ok STEP" after each step; any failure ends with exit code 1.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const count = 300

var bootstrap = os.Args[1]

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func ok(step string) { fmt.Println("ok", step) }

func client(options ...kgo.Opt) *kgo.Client {
	options = append([]kgo.Opt{kgo.SeedBrokers(bootstrap)}, options...)
	if stores := strings.Split(os.Getenv("JOURNEY_TLS"), ":"); len(stores) == 2 {
		trusted, err := os.ReadFile(stores[0])
		check(err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(trusted)
		identity, err := tls.LoadX509KeyPair(stores[1], stores[1])
		check(err)
		options = append(options, kgo.DialTLSConfig(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{identity}}))
	}
	c, err := kgo.NewClient(options...)
	check(err)
	return c
}

func produce(ctx context.Context, topic string, options ...kgo.Opt) {
	c := client(append(options, kgo.DefaultProduceTopic(topic))...)
	defer c.Close()
	records := make([]*kgo.Record, count)
	for i := range records {
		records[i] = &kgo.Record{
			Key:     fmt.Appendf(nil, "k%d", i),
			Value:   fmt.Appendf(nil, "v%d", i),
			Headers: []kgo.RecordHeader{{Key: "n", Value: fmt.Append(nil, i)}},
		}
	}
	check(c.ProduceSync(ctx, records...).FirstErr())
}

func consume(ctx context.Context, topic, group string) map[string]string {
	c := client(kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer c.Close()
	seen := map[string]string{}
	for n := 0; n < count; {
		fetches := c.PollFetches(ctx)
		check(fetches.Err0())
		fetches.EachRecord(func(r *kgo.Record) { seen[string(r.Key)] = string(r.Value); n++ })
	}
	check(c.CommitUncommittedOffsets(ctx))
	return seen
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	run := time.Now().UnixNano()
	topic, byDefault, firstUse := fmt.Sprintf("go-%d", run), fmt.Sprintf("go-default-%d", run), fmt.Sprintf("go-first-%d", run)
	group := fmt.Sprintf("go-group-%d", run)
	admin := kadm.NewClient(client())
	defer admin.Close()

	created, err := admin.CreateTopics(ctx, 3, 1, nil, topic)
	check(err)
	check(created.Error())
	ok("create")
	created, err = admin.CreateTopics(ctx, 2, -1, nil, byDefault)
	check(err)
	check(created.Error())
	ok("create-default-replication")

	produce(ctx, topic, kgo.RequiredAcks(kgo.AllISRAcks()))
	ok("produce-idempotent")
	produce(ctx, byDefault, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	ok("produce")
	for _, codec := range []kgo.CompressionCodec{kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()} {
		produce(ctx, byDefault, kgo.ProducerBatchCompression(codec))
	}
	ok("produce-compressed")
	produce(ctx, firstUse, kgo.AllowAutoTopicCreation())
	ok("first-use")

	seen := consume(ctx, topic, group)
	if len(seen) != count || seen["k7"] != "v7" {
		check(fmt.Errorf("other records came than were sent: %d", len(seen)))
	}
	ok("consume")
	offsets, err := admin.FetchOffsets(ctx, group)
	check(err)
	committed := int64(0)
	offsets.Each(func(o kadm.OffsetResponse) { committed += o.At })
	if committed != count {
		check(fmt.Errorf("committed %d of %d", committed, count))
	}
	ok("commit")
	produce(ctx, topic)
	consume(ctx, topic, group)
	ok("resume")
	described, err := admin.DescribeGroups(ctx, group)
	check(err)
	check(described.Error())
	ok("describe-group")
	deleted, err := admin.DeleteTopics(ctx, topic, byDefault, firstUse)
	check(err)
	check(deleted.Error())
	ok("delete")
}
