//! A flame graph of the broker under a workload: `perf` samples its stacks, this module folds and draws them.
//!
//! By processor time and not by cycles, which virtual machines often do not count; with the unwind tables that the release
//! build has, so that nothing needs to be built anew.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
/// A box narrower than this cannot be seen.
const NARROWEST: f64 = 0.3;

/// A recording under way.
pub struct Recording {
    perf: Child,
    data: PathBuf,
}

/// A function with what it called.
#[derive(Default)]
struct Frame {
    samples: u64,
    calls: BTreeMap<String, Frame>,
}

impl Recording {
    /// Begins to sample a process.
    pub fn begin(process: u32, folder: &Path) -> Result<Self> {
        install()?;
        fs::create_dir_all(folder)?;
        let data = folder.join("perf.data");
        let perf = Command::new("perf")
            .args(["record", "--quiet", "--event", "cpu-clock", "--freq", "199", "--call-graph", "dwarf,16384"])
            .args(["--pid", &process.to_string(), "--output"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("starting perf")?;
        Ok(Self { perf, data })
    }

    /// Ends it and draws the graph.
    pub fn end(mut self, title: &str, svg: &Path) -> Result<()> {
        ensure!(
            Command::new("kill").args(["-INT", &self.perf.id().to_string()]).status()?.success(),
            "could not end perf"
        );
        self.perf.wait()?;
        let output = Command::new("perf").args(["script", "--input"]).arg(&self.data).output()?;
        let _ = fs::remove_file(&self.data);
        let stacks = fold(&String::from_utf8_lossy(&output.stdout));
        ensure!(!stacks.calls.is_empty(), "perf saw nothing: {}", String::from_utf8_lossy(&output.stderr));
        fs::write(svg, draw(title, &stacks))?;
        Ok(())
    }
}

/// `perf` is a Debian package.
fn install() -> Result<()> {
    if Command::new("perf").arg("--version").output().is_ok() {
        return Ok(());
    }
    let installed = Command::new("apt-get").args(["install", "-y", "-qq", "linux-perf"]).output();
    ensure!(
        installed.is_ok_and(|output| output.status.success()),
        "a flame graph needs `perf`: install the package linux-perf (Debian) or linux-tools (Ubuntu)"
    );
    Ok(())
}

/// The stacks of `perf script`: a head line, then one line for each function, the innermost first, then an empty line.
fn fold(script: &str) -> Frame {
    let mut root = Frame::default();
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some(head) = lines.next() else { continue };
        let thread = head.split_whitespace().next().unwrap_or("?").to_owned();
        let mut stack: Vec<String> = lines.map(function).collect();
        stack.push(thread);
        root.samples += 1;
        let mut frame = &mut root;
        for name in stack.into_iter().rev() {
            frame = frame.calls.entry(name).or_default();
            frame.samples += 1;
        }
    }
    root
}

/// `  55d0c1 gregor_server::reply::send+0x1f (/usr/bin/gregor)` without its address and offset.
fn function(line: &str) -> String {
    let name = line.trim().split_once(' ').map_or("?", |(_, rest)| rest);
    let name = name.rsplit_once(" (").map_or(name, |(name, _)| name);
    name.rsplit_once("+0x").map_or(name, |(name, _)| name).to_owned()
}

fn depth(frame: &Frame) -> usize {
    frame.calls.values().map(|call| 1 + depth(call)).max().unwrap_or(0)
}

fn draw(title: &str, root: &Frame) -> String {
    let height = ROW * (depth(root) + 2) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\">\n\
         <style>text{{font:11px monospace}}rect{{stroke:#fff;stroke-width:.4}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><text x=\"6\" y=\"13\">{} ({} samples)</text>\n",
        escaped(title),
        root.samples
    );
    let per_sample = WIDTH / root.samples.max(1) as f64;
    draw_calls(&mut svg, root, (0.0, height - ROW), per_sample, root.samples);
    svg + "</svg>\n"
}

fn draw_calls(svg: &mut String, frame: &Frame, (mut x, y): (f64, f64), per_sample: f64, all: u64) {
    for (name, call) in &frame.calls {
        let width = call.samples as f64 * per_sample;
        if width >= NARROWEST {
            let share = 100.0 * call.samples as f64 / all.max(1) as f64;
            let hue = name.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) % 50;
            let letters = (width / 6.7) as usize;
            let text: String = if letters < 3 { String::new() } else { name.chars().take(letters).collect() };
            let _ = writeln!(
                svg,
                "<g><title>{} {share:.1} %</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{ROW}\" \
                 fill=\"hsl({hue},75%,68%)\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
                escaped(name),
                x + 2.0,
                y + 12.0,
                escaped(&text)
            );
            draw_calls(svg, call, (x, y - ROW), per_sample, all);
        }
        x += width;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_folded_from_the_thread_inwards() {
        let script = "tokio 12 1.0: 1 cpu-clock:\n\
                      \t 1f gregor::append+0x10 (/bin/gregor)\n\t 2f gregor::serve<T>+0x1 (/bin/gregor)\n\n\
                      tokio 12 2.0: 1 cpu-clock:\n\t 2f gregor::serve<T>+0x9 (/bin/gregor)\n\n";
        let root = fold(script);
        let serve = &root.calls["tokio"].calls["gregor::serve<T>"];
        assert_eq!((root.samples, serve.samples, serve.calls["gregor::append"].samples), (2, 2, 1));
        let svg = draw("small", &root);
        assert!(svg.contains("gregor::serve&lt;T&gt; 100.0 %") && svg.contains("gregor::append 50.0 %"), "{svg}");
    }
}
