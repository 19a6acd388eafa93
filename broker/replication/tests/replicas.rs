//! Replicas of several partitions through everything that can go wrong: nothing that was committed is lost, logs are equal
//! below high watermarks, and when the faults end all is in sync again.

#![allow(clippy::unwrap_used, reason = "helpers of a test")]

mod world;

use world::{Dice, Story, World};

/// One life of a cluster with everything going wrong, then healed.
fn chaos(brokers: i32, min_isr: usize, seed: u64) -> Story {
    let mut world = World::new(brokers, 3, 3, min_isr, seed);
    let mut dice = Dice(seed.wrapping_mul(31).wrapping_add(min_isr as u64));
    let ids = world.brokers();
    let any = |dice: &mut Dice| ids[dice.below(ids.len() as u64) as usize];
    for _ in 0..100 {
        let index = dice.below(3) as usize;
        match dice.below(26) {
            0 => world.kill(any(&mut dice)),
            1 | 2 => world.cut_power(any(&mut dice)),
            3..=6 => {
                let id = any(&mut dice);
                world.start(id);
            }
            7 => world.cut_off(any(&mut dice)),
            8 => {
                world.loss_percent = dice.below(30);
                world.double_percent = dice.below(20);
                let longest = if dice.percent(30) { 900 } else { 60 };
                world.delay_ms = 1 + dice.below(longest);
            }
            9 | 10 => world.heal(),
            11 => world.prefer(index),
            22 => world.hand_over(index),
            23 | 24 => {
                // Back before anybody has noticed, with messages of its former life still under way.
                let id = any(&mut dice);
                world.cut_power(id);
                world.start(id);
            }
            25 => world.set_min_isr(1 + dice.below(3) as usize),
            12 => world.reassign(index, dice.below(3) as usize),
            13 => world.delete_old(index),
            _ => {
                for _ in 0..dice.below(12) {
                    world.produce(index);
                    world.run(dice.below(20));
                }
            }
        }
        let longest = if dice.percent(70) { 60 } else { 2_500 };
        world.run(dice.below(longest));
    }
    world.heal();
    for id in &ids {
        world.start(*id);
    }
    world.run_until_converged(60_000);
    world.story
}

#[test]
fn whatever_goes_wrong_nothing_committed_is_lost_and_all_agree_in_the_end() {
    let number =
        |key: &str, otherwise| std::env::var(key).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise);
    let first: u64 = number("GREGOR_SEED", 0);
    let seeds: u64 = number("GREGOR_SEEDS", 15);
    let mut story = Story::default();
    for seed in first..first + seeds {
        for (brokers, min_isr) in [(3, 1), (3, 2), (4, 2), (4, 3)] {
            let outcome = std::panic::catch_unwind(|| chaos(brokers, min_isr, seed));
            story +=
                outcome.unwrap_or_else(|_| panic!("seed {seed}, {brokers} brokers, min.insync.replicas {min_isr}"));
        }
    }
    assert!(story.acknowledged > 0 && story.elections > 0 && story.records_cut > 0, "{story:?}");
    assert!(story.records_lost_by_power > 0 && story.joined > 0 && story.dropped > 0, "{story:?}");
}
