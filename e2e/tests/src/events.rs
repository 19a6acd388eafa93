//! A gigabyte of JSON events that is the same on every machine, and a check that takes them in any order, or in that of partitions.
//!
//! Called by the program `gregor-events` in a client's pod and by the tests. Event n is a function of n alone, so whoever
//! reads the events back can tell each byte that is wrong, missing or there twice, without keeping them.

use std::{
    collections::HashMap,
    io::{self, BufRead, Write},
};

const KINDS: [&str; 6] = ["view", "cart", "order", "payment", "refund", "shipment"];
const WORDS: [&str; 16] = [
    "amber", "basalt", "cedar", "delta", "ember", "fjord", "granite", "harbor", "indigo", "juniper", "krill", "lagoon",
    "meadow", "nectar", "ochre", "prairie",
];
/// How often progress is told, in bytes.
const PROGRESS_BYTES: u64 = 64 << 20;
/// Nobody asks for more events than this; the check keeps a bit for each.
const EVENTS_MAX: u64 = 1 << 32;

/// Writes event number `id` into `line`, without a newline.
fn write_event(id: u64, line: &mut Vec<u8>) {
    line.clear();
    let mut state = id;
    let mut random = |below: u64| {
        // SplitMix64: well mixed even for consecutive seeds.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    };
    let kind = KINDS[random(KINDS.len() as u64) as usize];
    let (user, cents, milliseconds) = (random(1_000_000), random(100_000), id % 1000);
    let (hour, minute, second) = (id / 3_600_000 % 24, id / 60_000 % 60, id / 1000 % 60);
    let written = write!(
        line,
        "{{\"id\":{id},\"at\":\"2026-01-01T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z\",\"kind\":\"{kind}\",\
         \"user\":\"u-{user:06}\",\"amount\":{}.{:02},\"note\":\"",
        cents / 100,
        cents % 100
    );
    written.expect("memory takes what is written");
    for number in 0..4 + random(20) {
        if number > 0 {
            line.push(b' ');
        }
        line.extend_from_slice(WORDS[random(WORDS.len() as u64) as usize].as_bytes());
    }
    line.extend_from_slice(b"\"}");
}

/// Writes events, one per line, until they are `bytes` or a little more, and returns their number.
pub fn generate(bytes: u64, output: &mut dyn Write, progress: &mut dyn FnMut(u64)) -> io::Result<u64> {
    let (mut written, mut told, mut id) = (0, 0, 0);
    let mut line = Vec::new();
    while written < bytes {
        write_event(id, &mut line);
        line.push(b'\n');
        output.write_all(&line)?;
        written += line.len() as u64;
        id += 1;
        if written - told >= PROGRESS_BYTES {
            told = written;
            progress(written);
        }
    }
    output.flush()?;
    Ok(id)
}

/// Reads the events that `generate(bytes, ..)` wrote, in any order, and returns their number; the error says which event
/// is wrong, missing or there twice. Progress is told of the first event too: whoever waits for it knows that reading has begun.
pub fn check(bytes: u64, input: &mut dyn BufRead, progress: &mut dyn FnMut(u64)) -> Result<u64, String> {
    check_lines(bytes, false, input, progress)
}

/// The same of lines that begin with the number of a partition and a space: the events of each have to come as one producer
/// sent them.
pub fn check_in_order(bytes: u64, input: &mut dyn BufRead, progress: &mut dyn FnMut(u64)) -> Result<u64, String> {
    check_lines(bytes, true, input, progress)
}

fn check_lines(
    bytes: u64,
    by_partition: bool,
    input: &mut dyn BufRead,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, String> {
    let expected = generate(bytes, &mut io::sink(), &mut |_| ()).map_err(|error| error.to_string())?;
    if expected > EVENTS_MAX {
        return Err(format!("{expected} events are more than the {EVENTS_MAX} that can be checked"));
    }
    let mut seen = vec![0_u64; expected.div_ceil(64) as usize];
    let (mut read, mut shown, mut count) = (0, 0, 0);
    let (mut line, mut event) = (Vec::new(), Vec::new());
    let mut last: HashMap<u32, u64> = HashMap::new();
    loop {
        line.clear();
        let length = input.read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
        if length == 0 {
            break;
        }
        let nothing = || format!("no event: {:?}", String::from_utf8_lossy(&line));
        let (partition, told) = if by_partition {
            partition_of(&line).map(|(partition, rest)| (Some(partition), rest)).ok_or_else(nothing)?
        } else {
            (None, &line[..])
        };
        let id = id_of(told).ok_or_else(nothing)?;
        write_event(id, &mut event);
        event.push(b'\n');
        if told != event {
            let (got, wanted) = (String::from_utf8_lossy(told), String::from_utf8_lossy(&event));
            return Err(format!("event {id} differs:\n  read    {got}  written {wanted}"));
        }
        let (word, bit) = ((id / 64) as usize, 1 << (id % 64));
        match seen.get_mut(word).filter(|_| id < expected) {
            None => return Err(format!("event {id} was never written; the last one is {}", expected - 1)),
            Some(bits) if *bits & bit != 0 => return Err(format!("event {id} is there twice")),
            Some(bits) => *bits |= bit,
        }
        if let Some(partition) = partition
            && let Some(before) = last.insert(partition, id)
            && before > id
        {
            return Err(format!("event {id} comes after event {before} in partition {partition}"));
        }
        count += 1;
        read += length as u64;
        if count == 1 || read - shown >= PROGRESS_BYTES {
            shown = read;
            progress(read);
        }
    }
    if count < expected {
        let missing = (0..expected).find(|id| seen[(id / 64) as usize] & (1 << (id % 64)) == 0);
        return Err(format!("{} of {expected} events are missing, the first is {missing:?}", expected - count));
    }
    Ok(count)
}

/// The number that a line begins with, and what follows it.
fn partition_of(line: &[u8]) -> Option<(u32, &[u8])> {
    let end = line.iter().position(|byte| *byte == b' ')?;
    let partition = std::str::from_utf8(&line[..end]).ok()?.parse().ok()?;
    Some((partition, &line[end + 1..]))
}

fn id_of(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"id\":")?;
    let end = digits.iter().position(|byte| *byte == b',')?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 20_000;

    fn lines() -> Vec<Vec<u8>> {
        let mut output = Vec::new();
        generate(BYTES, &mut output, &mut |_| ()).unwrap();
        output.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn progress_is_told_of_the_first_event() {
        let mut told = Vec::new();
        check(BYTES, &mut lines().concat().as_slice(), &mut |bytes| told.push(bytes)).unwrap();
        assert_eq!(told, [lines()[0].len() as u64]);
    }

    fn check_all(lines: &[Vec<u8>]) -> Result<u64, String> {
        check(BYTES, &mut lines.concat().as_slice(), &mut |_| ())
    }

    #[test]
    fn events_in_another_order_are_whole() {
        let mut lines = lines();
        lines.reverse();
        assert_eq!(check_all(&lines), Ok(lines.len() as u64));
    }

    #[test]
    fn events_of_a_partition_have_to_come_as_they_were_sent() {
        let check = |lines: &[Vec<u8>]| check_in_order(BYTES, &mut lines.concat().as_slice(), &mut |_| ());
        let numbered = |(id, line): (usize, Vec<u8>)| [format!("{} ", id % 3).as_bytes(), &line].concat();
        let mut lines: Vec<_> = lines().into_iter().enumerate().map(numbered).collect();
        assert_eq!(check(&lines), Ok(lines.len() as u64));
        // Others of other partitions may overtake.
        lines.swap(4, 5);
        assert_eq!(check(&lines), Ok(lines.len() as u64));
        lines.swap(6, 9);
        assert!(check(&lines).unwrap_err().contains("event 6 comes after event 9 in partition 0"));
        assert!(check(&self::lines()).unwrap_err().contains("no event"));
    }

    #[test]
    fn every_event_is_json() {
        for line in lines() {
            serde_json::from_slice::<serde_json::Value>(&line).unwrap();
        }
    }

    #[test]
    fn a_missing_a_doubled_and_a_changed_event_are_named() {
        let mut missing = lines();
        missing.remove(7);
        assert!(check_all(&missing).unwrap_err().contains("the first is Some(7)"));
        let mut doubled = lines();
        doubled.push(doubled[3].clone());
        assert!(check_all(&doubled).unwrap_err().contains("event 3 is there twice"));
        let mut changed = lines();
        let last = changed[5].len() - 5;
        changed[5][last] ^= 1;
        assert!(check_all(&changed).unwrap_err().contains("event 5 differs"));
    }
}
