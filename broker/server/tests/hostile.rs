//! What a peer can do to a node by what it sends, and by what it does not send: at worst it loses its own connection.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::{
    io::{Cursor, Read, Write},
    net::TcpStream,
    time::Duration,
};

use gregor_messages::ProduceRequest;
use support::{Client, Home, Running, batch, only, produce_request};

/// The node still takes and gives records.
fn assert_serves(node: &Running, topic: &str) {
    let mut client = node.client();
    let produced = client.produce(topic, 0, batch(&["still here"]));
    assert_eq!(produced.error_code, 0);
    assert!(!client.fetch(topic, 0, produced.base_offset, 0).records.unwrap().is_empty());
}

fn closes_after(node: &Running, bytes: &[u8]) -> bool {
    let mut client = node.client();
    client.stream.write_all(bytes).unwrap();
    client.is_closed()
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

#[test]
fn bad_frames_close_their_own_connection_only() {
    let home = Home::new().with("socket.request.max.bytes", "100000");
    let node = home.start();
    drop(node.with_topic("victim", 1, &[]));
    let mut bystander = node.client();
    let header = |key: i16, version: i16| {
        [&key.to_be_bytes()[..], &version.to_be_bytes(), &7_i32.to_be_bytes(), &(-1_i16).to_be_bytes()].concat()
    };
    let cases: [(&str, Vec<u8>); 10] = [
        ("a negative length", (-1_i32).to_be_bytes().to_vec()),
        ("a length above socket.request.max.bytes", 100_001_i32.to_be_bytes().to_vec()),
        ("the largest length", i32::MAX.to_be_bytes().to_vec()),
        ("an empty frame", framed(&[])),
        ("half a header", framed(&[0, 0, 0])),
        ("an unknown key", framed(&header(4711, 0))),
        ("a negative key", framed(&header(-1, 0))),
        ("a controller's API on a broker's listener", framed(&header(52, 0))),
        ("a version of Produce that is advertised and not served", framed(&header(0, 2))),
        ("an array that claims two thousand million elements", {
            let body = [&header(2, 1)[..], &(-1_i32).to_be_bytes(), &i32::MAX.to_be_bytes()].concat();
            framed(&body)
        }),
    ];
    for (what, bytes) in cases {
        assert!(closes_after(&node, &bytes), "{what} did not close the connection");
    }
    for length in 0..200 {
        // Bytes without sense behind the header of every API that is served; whatever comes back, nothing may break.
        for (key, version) in
            [(0, 3), (0, 9), (0, 13), (1, 4), (1, 12), (1, 17), (2, 7), (18, 3), (21, 2), (23, 4), (35, 4)]
        {
            let noise: Vec<u8> = (0..length).map(|index| (index * 31 + length * 17) as u8).collect();
            let mut stream = TcpStream::connect(node.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            stream.write_all(&framed(&[&header(key, version)[..], &noise].concat())).unwrap();
            // An answer, a closed connection, or a fetch that sleeps: each is right.
            let _ = stream.read(&mut [0; 64]);
        }
    }
    assert_eq!(bystander.produce("victim", 0, batch(&["unharmed"])).error_code, 0);
    assert_serves(&node, "victim");
    node.stop();
}

#[test]
fn half_sent_requests_do_not_hold_up_others_or_a_stop() {
    let home = Home::new();
    let node = home.start();
    drop(node.with_topic("victim", 1, &[]));
    let mut half: Vec<Client> = (0..50).map(|_| node.client()).collect();
    for (index, client) in half.iter_mut().enumerate() {
        client.stream.write_all(&framed(&[0; 1000])[..index * 4]).unwrap();
    }
    assert_serves(&node, "victim");
    node.stop();
    drop(half);
}

#[test]
fn what_came_together_with_a_bad_frame_is_answered_before_it() {
    let home = Home::new();
    let node = home.start();
    let mut client = node.with_topic("victim", 1, &[]);
    let mut pen = Client::over(Cursor::new(Vec::new()));
    let sent = [(); 3].map(|()| pen.send(9, &produce_request("victim", 0, -1, batch(&["kept"]))));
    let mut bytes = pen.stream.into_inner();
    bytes.extend(framed(&[0, 0, 0]));
    client.stream.write_all(&bytes).unwrap();
    for request in sent {
        assert_eq!(only(client.receive::<ProduceRequest>(9, request)).error_code, 0);
    }
    assert!(client.is_closed());
    assert_eq!(node.client().end_offset("victim", 0), 3);
    node.stop();
}

#[test]
fn memory_follows_what_arrives_and_not_what_is_claimed() {
    let home = Home::new();
    let node = home.start();
    drop(node.with_topic("victim", 1, &[]));
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    };
    let before = resident();
    let mut liars: Vec<Client> = (0..200).map(|_| node.client()).collect();
    for liar in &mut liars {
        // 100 MB claimed, a hundredth of a percent of it sent.
        liar.stream.write_all(&100_000_000_i32.to_be_bytes()).unwrap();
        liar.stream.write_all(&[0; 10_000]).unwrap();
    }
    assert_serves(&node, "victim");
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "200 connections that sent 2 MB made the node grow by {grown} bytes");
    drop(liars);
    node.stop();
}

#[test]
fn more_requests_than_memory_are_served_one_after_the_other() {
    let home = Home::new().with("queued.max.request.bytes", "100000");
    let node = home.start();
    drop(node.with_topic("crowded", 1, &[]));
    let value = "x".repeat(90_000);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (address, value) = (node.address, value.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                for _ in 0..5 {
                    assert_eq!(client.produce("crowded", 0, batch(&[&value])).error_code, 0);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(node.client().list_offset("crowded", 0, -1).offset, 40);
    node.stop();
}

#[test]
fn an_address_has_no_more_connections_than_it_may() {
    let home = Home::new().with("max.connections.per.ip", "2");
    let node = home.start();
    let (mut first, _second) = (node.client(), node.client());
    // Both are accepted before the third: the first is answered.
    first.create_topic("victim", 1, &[]);
    let mut third = node.client();
    assert!(third.is_closed());
    assert_eq!(first.produce("victim", 0, batch(&["kept"])).error_code, 0);
    node.stop();
}

#[test]
fn an_address_may_have_a_number_of_its_own_and_all_together_another() {
    let limits = [
        ("max.connections.per.ip.overrides", "127.0.0.1:3", "max.connections.per.ip", "1", 3),
        ("max.connections", "2", "max.connections.per.ip", "100", 2),
    ];
    for (key, value, other, other_value, allowed) in limits {
        let home = Home::new().with(key, value).with(other, other_value);
        let node = home.start();
        // A listener accepts in order: each is answered before the next one comes.
        let mut let_in: Vec<_> = (0..allowed)
            .map(|_| {
                let mut client = node.client();
                assert!(client.list_offset("none", 0, -1).error_code != 0, "{key}");
                client
            })
            .collect();
        if key == "max.connections" {
            // As in Apache Kafka, who comes then waits until somebody goes.
            let mut waiting = node.client();
            waiting.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let asked = waiting.send(1, &gregor_messages::ListGroupsRequest::default());
            assert!(waiting.stream.read(&mut [0; 1]).is_err(), "nobody answers it");
            drop(let_in.pop());
            waiting.stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
            waiting.receive::<gregor_messages::ListGroupsRequest>(1, asked);
        } else {
            assert!(node.client().is_closed(), "{key}");
            drop(let_in);
        }
        node.stop();
    }
}

#[test]
fn a_peer_that_takes_answers_by_the_byte_gets_each_once_and_whole() {
    const REQUESTS: i64 = 400;
    let home = Home::new().with("socket.send.buffer.bytes", "4096");
    let node = home.start();
    drop(node.with_topic("t", 1, &[]));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(1_024).unwrap();
    socket.connect(&node.address_of("PLAINTEXT").into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    let mut client = Client::over(stream);
    let request = produce_request("t", 0, -1, batch(&["v"]));
    // Small ones, so that many are answered together, and more answers than the sockets hold before the first is read.
    for _ in 0..REQUESTS {
        client.send(9, &request);
    }
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for offset in 0..REQUESTS {
        let produced = only(client.receive::<ProduceRequest>(9, offset as i32 + 1));
        assert_eq!((produced.error_code, produced.base_offset), (0, offset));
    }
    assert!(client.is_closed(), "nothing comes after the last answer");
    node.stop();
}

#[test]
fn an_idle_connection_is_closed() {
    let home = Home::new().with("connections.max.idle.ms", "200");
    let node = home.start();
    let mut client = node.client();
    client.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(client.is_closed());
    node.stop();
}
