use super::*;
use crate::random::Random;
use shoal_wire::mesh::demand::Work;

const TERMS: Terms = Terms { min: 0, max: 100, slots: 4, startup_s: 60, quiet_s: 15 };

fn ready(jobs: u32, slot_s: u64) -> Amount {
    Amount { ready: Work { jobs, slot_s }, ..Amount::default() }
}

fn pool(replicas: u32, busy: u32, amount: Amount) -> Pool {
    Pool { replicas, active: replicas, busy, amount, ..Pool::default() }
}

#[test]
fn what_finds_a_slot_in_time_starts_no_node() {
    let mut sizer = Sizer::default();
    // A hundred of a second each are done by four slots before a new node is there; of a minute each they are not.
    assert_eq!(sizer.decide(&TERMS, &pool(1, 0, ready(100, 100)), 0).replicas, 1);
    let verdict = sizer.decide(&TERMS, &pool(1, 0, ready(100, 6_000)), 0);
    assert_eq!((verdict.replicas, verdict.reason), (24, Reason::Grow));
    // It is asked for once, though the nodes are not there yet.
    let starting = Pool { replicas: 24, ..pool(1, 4, ready(92, 5_520)) };
    assert_eq!(sizer.decide(&TERMS, &starting, 5).replicas, 24);
}

#[test]
fn a_pool_shrinks_from_its_end_after_the_quiet_time_and_only_when_drained() {
    let mut sizer = Sizer::default();
    let busy = pool(5, 20, Amount::default());
    assert_eq!(sizer.decide(&TERMS, &busy, 0).reason, Reason::Enough);
    let idle = pool(5, 5, Amount::default());
    let verdict = |sizer: &mut Sizer, pool: Pool, now_s| {
        let Verdict { replicas, drain, reason } = sizer.decide(&TERMS, &pool, now_s);
        (replicas, drain, reason)
    };
    assert_eq!(verdict(&mut sizer, idle, 10), (5, 0, Reason::Quieting));
    assert_eq!(verdict(&mut sizer, idle, 26), (5, 3, Reason::Draining));
    let draining = Pool { active: 2, draining: 3, ..idle };
    assert_eq!(verdict(&mut sizer, draining, 30), (5, 3, Reason::Draining));
    assert_eq!(verdict(&mut sizer, Pool { drained: 2, ..draining }, 35), (3, 1, Reason::Shrink));
    // Work comes: who drains is taken back, and nobody new is started.
    let wanted = Pool { amount: ready(4, 4_000), busy: 8, ..draining };
    assert_eq!(verdict(&mut sizer, wanted, 40), (5, 2, Reason::Grow));
}

#[test]
fn bounds_hold_and_a_lower_maximum_drains() {
    let mut sizer = Sizer::default();
    let terms = Terms { min: 2, max: 4, ..TERMS };
    let verdict = sizer.decide(&terms, &pool(1, 4, ready(100, 60_000)), 0);
    assert_eq!((verdict.replicas, verdict.reason), (4, Reason::AtMax));
    assert_eq!(sizer.decide(&terms, &pool(1, 0, Amount::default()), 1).replicas, 2);
    let verdict = sizer.decide(&terms, &pool(9, 36, ready(10, 6_000)), 2);
    assert_eq!((verdict.replicas, verdict.drain), (9, 5));
    let all_drained = Pool { draining: 5, drained: 5, active: 4, ..pool(9, 0, Amount::default()) };
    assert_eq!(sizer.decide(&terms, &all_drained, 3).replicas, 4);
    let mut quiet = Sizer::default();
    let decided = (0..100).map(|s| quiet.decide(&terms, &pool(2, 0, Amount::default()), s));
    assert_eq!(decided.last().map(|verdict| verdict.reason), Some(Reason::AtMin));
}

/// What somebody asks for: when it is ready, and how long it takes.
#[derive(Clone, Copy)]
struct Job {
    ready_s: u64,
    takes_s: u64,
}

/// Bursts of independent derivations: some at once, then more for a while, as a large rebuild gives them.
fn day(random: &mut Random) -> Vec<Job> {
    let mut jobs = Vec::new();
    let mut now_s = 0;
    while now_s < 24 * 3_600 {
        let lasts_s = 600 + random.below(2_400);
        let at_once = 10 + random.below(100);
        let a_minute = 10 + random.below(90);
        let mut job = |ready_s, random: &mut Random| {
            // Most are short, some are long: the product of two is skewed.
            let takes_s = 10 + random.below(20) * random.below(20);
            jobs.push(Job { ready_s, takes_s });
        };
        (0..at_once).for_each(|_| job(now_s, random));
        for second in 0..lasts_s {
            if random.below(60) < a_minute {
                (0..1 + a_minute / 60).for_each(|_| job(now_s + second, random));
            }
        }
        now_s += lasts_s + 600 + random.below(7_200);
    }
    jobs
}

#[derive(Default)]
struct Node {
    ready_s: u64,
    drains: bool,
    /// When what runs ends.
    ends: Vec<u64>,
}

struct Outcome {
    paid_s: u64,
    waited_s: u64,
    most: u32,
    writes: u32,
}

/// A day by the second; the sizer hears of it each five, with estimates that are wrong by half either way.
fn simulate(jobs: &[Job], random: &mut Random) -> Outcome {
    let (mut sizer, mut nodes, mut waiting) = (Sizer::default(), Vec::<Node>::new(), VecDeque::new());
    let mut left = jobs.iter().copied().peekable();
    let mut outcome = Outcome { paid_s: 0, waited_s: 0, most: 0, writes: 0 };
    let mut now_s = 0;
    while left.peek().is_some() || !nodes.is_empty() || !waiting.is_empty() {
        while let Some(job) = left.next_if(|job| job.ready_s <= now_s) {
            let estimate_s = (job.takes_s * (50 + random.below(100)) / 100).max(1);
            waiting.push_back((job, estimate_s));
        }
        nodes.iter_mut().for_each(|node| node.ends.retain(|end| *end > now_s));
        while !waiting.is_empty() {
            let free = |node: &Node| node.ready_s <= now_s && !node.drains && node.ends.len() < TERMS.slots as usize;
            let open: Vec<usize> = (0..nodes.len()).filter(|n| free(&nodes[*n])).collect();
            let (Some(at), Some((job, _))) = (random.pick(&open), waiting.front()) else { break };
            outcome.waited_s = outcome.waited_s.max(now_s - job.ready_s);
            nodes[*at].ends.push(now_s + job.takes_s);
            waiting.pop_front();
        }
        if now_s % 5 == 0 {
            decide(&mut sizer, &mut nodes, &waiting, now_s, &mut outcome);
        }
        outcome.paid_s += nodes.len() as u64 * u64::from(TERMS.slots);
        outcome.most = outcome.most.max(nodes.len() as u32);
        now_s += 1;
    }
    outcome
}

fn decide(sizer: &mut Sizer, nodes: &mut Vec<Node>, waiting: &VecDeque<(Job, u64)>, now_s: u64, outcome: &mut Outcome) {
    let active = || nodes.iter().filter(|node| node.ready_s <= now_s && !node.drains);
    let ending = active().flat_map(|node| &node.ends).filter(|end| **end <= now_s + TERMS.startup_s).count();
    let last = |holds: fn(&Node) -> bool| nodes.iter().rev().take_while(|node| holds(node)).count() as u32;
    let work = Work { jobs: waiting.len() as u32, slot_s: waiting.iter().map(|(_, estimate_s)| estimate_s).sum() };
    let pool = Pool {
        replicas: nodes.len() as u32,
        active: active().count() as u32,
        busy: active().map(|node| node.ends.len() as u32).sum(),
        draining: last(|node| node.drains),
        drained: last(|node| node.drains && node.ends.is_empty()),
        amount: Amount { ready: work, coming: Work::default(), ending: ending as u32 },
    };
    let verdict = sizer.decide(&TERMS, &pool, now_s);
    assert!(verdict.replicas >= pool.replicas - pool.drained, "a node that has not drained would go");
    outcome.writes += u32::from(verdict.replicas != pool.replicas);
    nodes.truncate(verdict.replicas as usize);
    nodes.resize_with(verdict.replicas as usize, || Node { ready_s: now_s + TERMS.startup_s, ..Node::default() });
    let first = nodes.len() - verdict.drain as usize;
    nodes.iter_mut().enumerate().for_each(|(n, node)| node.drains = n >= first);
}

/// Slot-seconds that nobody can do without who lets no derivation wait for longer than `wait_s`, whatever is known in
/// advance: the work itself, and the start of as many slots as must run at once. Where nothing can be running for longer
/// than a start takes, slots are started again, or kept at no less than that.
fn least_s(jobs: &[Job], wait_s: u64) -> u64 {
    let mut jobs = jobs.to_vec();
    jobs.sort_by_key(|job| job.ready_s);
    let work_s: u64 = jobs.iter().map(|job| job.takes_s).sum();
    let (mut starts, mut edges, mut end_s) = (0, Vec::new(), 0);
    let most = |edges: &mut Vec<(u64, i64)>| {
        edges.sort_unstable();
        let mut running = 0;
        edges
            .drain(..)
            .map(|(_, change)| {
                running += change;
                running
            })
            .max()
            .unwrap_or(0) as u64
    };
    for job in &jobs {
        if job.ready_s > end_s + TERMS.startup_s {
            starts += most(&mut edges);
        }
        // Whenever it starts, it runs from the latest start to the earliest end.
        if job.takes_s > wait_s {
            edges.push((job.ready_s + wait_s, 1));
            edges.push((job.ready_s + job.takes_s, -1));
        }
        end_s = end_s.max(job.ready_s + wait_s + job.takes_s);
    }
    starts += most(&mut edges);
    work_s + starts * TERMS.startup_s
}

#[test]
fn a_day_of_bursts_costs_little_more_than_it_must_and_nobody_waits_for_long() {
    let wait_s = TERMS.startup_s + 10;
    for seed in 1..=8 {
        let mut random = Random::new(seed);
        let jobs = day(&mut random);
        let outcome = simulate(&jobs, &mut random);
        let ratio = outcome.paid_s as f64 / least_s(&jobs, wait_s) as f64;
        let Outcome { waited_s, most, writes, .. } = outcome;
        println!(
            "seed {seed}: {} jobs, {most} nodes at most, {writes} writes, ratio {ratio:.3}, longest wait {waited_s} s",
            jobs.len()
        );
        assert!(ratio <= 1.25 && waited_s <= wait_s, "seed {seed}: ratio {ratio:.3}, longest wait {waited_s} s");
    }
}
