//! The machine under the bench: what it is, what else it does, and the ballast that keeps its page cache from being fresh.
//!
//! On a virtual machine that gives freed memory back to its host, the first touch of a page costs many times what a page used
//! again does: both brokers would pay for it, and every ratio would shrink towards one.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use serde::Serialize;

const MIB: u64 = 1 << 20;
/// What brokers, client and system need beside the ballast.
const MEMORY_LEFT_MIB: u64 = 6 * 1024;
const BALLAST_MAX_MIB: u64 = 16 * 1024;
const PROBES: u32 = 2_000;

/// What a reader has to know to read absolute figures.
#[derive(Serialize)]
pub struct Machine {
    /// Processors that the bench may use.
    pub processors: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub model: String,
}

/// What two fixed jobs of the kernel cost at the beginning of a round, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Probe {
    /// A `pwrite` of 16 KiB into a file's page cache.
    pub write_us: f64,
    /// 128 bytes there and back over loopback.
    pub ping_pong_us: f64,
}

/// A file that fills the page cache; removed when dropped.
pub struct Ballast {
    _file: tempfile::NamedTempFile,
    /// Its size in MiB.
    pub mib: u64,
}

/// Processor time of all kinds, and what the host took, in ticks since the machine's start.
#[derive(Debug, Clone, Copy)]
pub struct Ticks {
    all: u64,
    stolen: u64,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn memory_mib(name: &str) -> u64 {
    field(&read("/proc/meminfo"), name).trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        Self {
            processors: thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory_mib("MemTotal"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            model: field(&read("/proc/cpuinfo"), "model name"),
        }
    }
}

impl Ballast {
    /// Fills what memory is free, but for what the bench needs, and no more than a third of the free disk.
    pub fn fill(progress: impl Fn(u64, u64)) -> Result<Self> {
        let file = tempfile::Builder::new().prefix("gregor-bench-ballast-").tempfile()?;
        let disk = rustix::fs::statvfs(file.path())?;
        let disk_mib = disk.f_bavail.saturating_mul(disk.f_frsize) / MIB;
        let mib = memory_mib("MemAvailable").saturating_sub(MEMORY_LEFT_MIB).min(BALLAST_MAX_MIB).min(disk_mib / 3);
        let chunk = vec![0x5a; MIB as usize];
        for written in 0..mib {
            file.as_file().write_all_at(&chunk, written * MIB)?;
            if written.is_multiple_of(256) {
                progress(written, mib);
            }
        }
        // Dirty pages cannot be used again at once.
        file.as_file().sync_data()?;
        Ok(Self { _file: file, mib })
    }
}

impl Probe {
    /// Measures both jobs.
    pub fn take() -> Result<Self> {
        let file = tempfile::tempfile()?;
        let block = [0x5a; 16 << 10];
        write_blocks(&file, &block)?;
        let begun = Instant::now();
        write_blocks(&file, &block)?;
        let write_us = begun.elapsed().as_secs_f64() * 1e6 / f64::from(PROBES);
        Ok(Self { write_us, ping_pong_us: ping_pong()? })
    }
}

fn write_blocks(file: &File, block: &[u8]) -> Result<()> {
    for index in 0..u64::from(PROBES) {
        file.write_all_at(block, index * block.len() as u64)?;
    }
    Ok(())
}

fn ping_pong() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; 128];
        for _ in 0..PROBES {
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; 128];
    let begun = Instant::now();
    for _ in 0..PROBES {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
    }
    let took = begun.elapsed().as_secs_f64() * 1e6 / f64::from(PROBES);
    echo.join().ok().context("the echo ended early")??;
    Ok(took)
}

impl Ticks {
    /// Now.
    pub fn now() -> Self {
        let text = read("/proc/stat");
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; what guests used is in user already.
        Self { all: ticks.iter().take(8).sum(), stolen: ticks.get(7).copied().unwrap_or(0) }
    }

    /// The share that the host took since an earlier look, 0 to 1.
    pub fn stolen_since(self, earlier: Self) -> f64 {
        (self.stolen.saturating_sub(earlier.stolen)) as f64 / (self.all.saturating_sub(earlier.all)).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_took_is_a_share_of_all_time() {
        let (before, after) = (Ticks { all: 100, stolen: 10 }, Ticks { all: 300, stolen: 20 });
        assert!((after.stolen_since(before) - 0.05).abs() < 1e-9);
        assert!(before.stolen_since(before).abs() < 1e-9);
    }

    #[test]
    fn the_probe_measures_something() {
        let probe = Probe::take().unwrap();
        assert!(probe.write_us > 0.0 && probe.ping_pong_us > 0.0);
    }
}
