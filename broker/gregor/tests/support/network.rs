//! A network of a test's own, which it cuts: each node has a network namespace, and the clients have one with a bridge between.
//!
//! What is cut is lost without a word, one way or both, as real networks lose it: packets go to a hardware address that nobody
//! has, which takes no module of the kernel. Open files hold the namespaces, so they are gone with all that is in them once the
//! test and its nodes are, however these end. The machine's own interfaces and addresses are never touched.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::fleet::{DEADLINE, NODES};

/// Where the clients are, beside nodes 1 to 3.
pub const CLIENTS: usize = 0;
/// The hardware address that nobody has.
const NOBODY: &str = "02:00:00:00:00:ff";

/// The namespaces of clients and nodes.
pub struct Network {
    places: Vec<File>,
}

/// A process that has a new namespace, until it has another holder.
struct Holder {
    child: Child,
    namespace: File,
}

/// A node's address, or the clients'. They are nobody else's: the namespaces have no way out.
pub fn address(place: usize) -> String {
    format!("10.251.0.{}", number(place))
}

fn hardware(place: usize) -> String {
    format!("02:00:00:00:00:{:02x}", number(place))
}

fn number(place: usize) -> usize {
    if place == CLIENTS { 254 } else { place }
}

impl Holder {
    fn start() -> Result<Self, String> {
        let mut child = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up && echo up && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        let _ = BufReader::new(child.stdout.take().unwrap()).read_line(&mut line);
        if line == "up\n" {
            let namespace = File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
            return Ok(Self { child, namespace });
        }
        let mut said = String::new();
        let _ = child.stderr.take().unwrap().read_to_string(&mut said);
        let _ = child.wait();
        Err(said)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends as its input does, which this closes.
        let _ = self.child.wait();
    }
}

impl Network {
    /// A network of which nothing is cut, or why there can be none here: it takes root, `ip`, and a kernel with bridges.
    pub fn make() -> Result<Self, String> {
        let holders: Vec<_> = (0..=NODES).map(|_| Holder::start()).collect::<Result<_, _>>()?;
        let places = holders.iter().map(|holder| holder.namespace.try_clone().unwrap()).collect();
        let network = Self { places };
        network.run(CLIENTS, &format!("ip link add eth0 address {} type bridge", hardware(CLIENTS)))?;
        for (node, holder) in holders.iter().enumerate().skip(1) {
            let peer = format!("name eth0 address {} netns {}", hardware(node), holder.child.id());
            let link = format!("ip link add v{node} type veth peer {peer} && ip link set v{node} master eth0 up");
            network.run(CLIENTS, &link)?;
        }
        for place in 0..=NODES {
            network.run(place, &format!("ip addr add {}/24 dev eth0 && ip link set eth0 up", address(place)))?;
        }
        for from in 0..=NODES {
            for to in (0..=NODES).filter(|to| *to != from) {
                network.mend(from, to);
            }
        }
        network.forwards()?;
        Ok(network)
    }

    /// Waits until the bridge has seen that the nodes' links are up.
    fn forwards(&self) -> Result<(), String> {
        let deadline = Instant::now() + DEADLINE;
        while self.run(CLIENTS, "ip -details link show")?.matches("state forwarding").count() < NODES {
            assert!(Instant::now() < deadline, "the bridge does not forward");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Takes this thread, and those that it starts from now on, to where the clients are.
    pub fn enter(&self) {
        enter(&self.places[CLIENTS]);
    }

    /// Does something where a node is, or where the clients are: programs and sockets that come of it stay there.
    pub fn at<T: Send>(&self, place: usize, act: impl FnOnce() -> T + Send) -> T {
        let there = || {
            enter(&self.places[place]);
            act()
        };
        // The thread ends in the place that it went to.
        thread::scope(|scope| scope.spawn(there).join().unwrap())
    }

    /// Has what one sends another be lost from now on. What the other sends arrives.
    pub fn cut(&self, from: usize, to: usize) {
        self.lead(from, to, NOBODY);
    }

    /// Has what one sends another arrive again.
    pub fn mend(&self, from: usize, to: usize) {
        self.lead(from, to, &hardware(to));
    }

    fn lead(&self, from: usize, to: usize, hardware: &str) {
        let script = format!("ip neigh replace {} lladdr {hardware} dev eth0 nud permanent", address(to));
        self.run(from, &script).unwrap();
    }

    fn run(&self, place: usize, script: &str) -> Result<String, String> {
        let done = self.at(place, || Command::new("sh").args(["-c", script]).output().unwrap());
        if !done.status.success() {
            return Err(format!("{script}: {done:?}"));
        }
        Ok(String::from_utf8(done.stdout).unwrap())
    }
}

fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}
