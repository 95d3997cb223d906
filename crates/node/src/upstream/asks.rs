//! Questions to upstreams: who is asked decides `shoal_grid::upstreams`, the asking is done here.
//!
//! Each upstream has threads of its own, so that one that stalls keeps nobody from another. The same question to the
//! same upstream is on its way once, however many wait for it; an answer that comes too late for them is kept for the
//! next.

use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_grid::upstreams::{Answer, Health, Lookup, Phase, Remembered, Step, UpstreamId, Upstreams};
use shoal_wire::mesh::NodeKey;
use shoal_wire::nix::narinfo::NarInfo;
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;

use super::offer::{Held, Offer};
use super::origin::Origin;
use super::pool::Pool;
use super::question::{Finding, Question};
use super::web::Refusal;
use crate::neighbours::Neighbours;
use crate::session::admission::Admission;

/// Questions on their way to one upstream. Nix's `max-substitution-jobs`.
const ASKS_MAX: usize = 16;
/// Questions that wait for a thread; more count as not answered.
const ASKS_WAITING_MAX: usize = 4096;
/// Things that one caller asks for at the same time.
const LOOKUPS_MAX: usize = 64;
/// How long an offer is good for. Its NAR is asked for soon after, or not at all.
const OFFER_HOLD_MS: u64 = 600_000;
const OFFERS_MAX: usize = 16_384;
/// How long "no" is believed: asking again and again costs nothing, and what is pushed upstream is seen soon.
const ABSENT_HOLD_MS: u64 = 30_000;
const ABSENT_MAX: usize = 65_536;
/// What is asked first of an upstream that says nothing of itself yet.
const PRIORITY_UNKNOWN: u32 = 50;

/// What a path is looked up by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query<'a> {
    Path(&'a StorePath),
    HashPart(&'a str),
}

impl Query<'_> {
    fn hash_part(&self) -> &str {
        match self {
            Query::Path(path) => path.hash_part(),
            Query::HashPart(hash_part) => hash_part,
        }
    }

    fn question(&self) -> Question {
        Question::Path(self.hash_part().to_string())
    }

    fn fits(&self, finding: &Finding) -> bool {
        if let Finding::Offer(offer) = finding { self.is_of(offer) } else { false }
    }

    fn is_of(&self, offer: &Offer) -> bool {
        match self {
            Query::Path(path) => offer.info.path == **path,
            Query::HashPart(hash_part) => offer.info.path.hash_part() == *hash_part,
        }
    }
}

/// Who is not asked, because it did not deliver.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    pub caches: BTreeSet<UpstreamId>,
    pub mesh: bool,
    pub holders: BTreeSet<NodeKey>,
}

#[derive(Clone)]
enum Heard {
    Found(Finding),
    Missing,
    Failed,
}

type Key = (UpstreamId, Question);
type Told = (usize, UpstreamId, Heard);
type Listener = (usize, Sender<Told>);

pub struct Asks {
    pub neighbours: Neighbours,
    pub caches: Vec<Origin>,
    pub admission: Admission,
    /// See [`HEDGE`](super::HEDGE).
    hedge: Duration,
    pools: Vec<Pool>,
    since: Instant,
    state: Mutex<State>,
}

struct State {
    health: Upstreams,
    offers: Remembered<String, Arc<Offer>>,
    absent: Remembered<Key, ()>,
    on_their_way: HashMap<Key, Vec<Listener>>,
}

/// Questions of one caller that are being answered.
struct Looking<'a> {
    asks: &'a Arc<Asks>,
    wanted: &'a [Question],
    fits: &'a dyn Fn(usize, &Finding) -> bool,
    budget: Duration,
    not: &'a BTreeSet<UpstreamId>,
    found: Vec<Option<Finding>>,
    /// By the number of the question.
    open: HashMap<usize, Lookup>,
    /// How many of the questions were begun.
    begun: usize,
    tell: Sender<Told>,
    told: Receiver<Told>,
}

impl Looking<'_> {
    fn is_done(&self) -> bool {
        self.open.is_empty() && self.begun == self.wanted.len()
    }

    /// Begins as many as may be open at a time.
    fn begin(&mut self) {
        while self.open.len() < LOOKUPS_MAX && self.begun < self.wanted.len() {
            let index = self.begun;
            self.begun += 1;
            match self.asks.begin(&self.wanted[index], &|finding| (self.fits)(index, finding), self.budget, self.not) {
                Ok(finding) => self.found[index] = Some(finding),
                Err(lookup) => drop(self.open.insert(index, lookup)),
            }
        }
    }

    /// Asks whom it is time to ask, and leaves what is over. When somebody else is to be asked, if nobody answers.
    fn step(&mut self) -> u64 {
        let (asks, now_ms) = (self.asks, self.asks.now_ms());
        let mut wake_ms = u64::MAX;
        self.open.retain(|&index, lookup| {
            loop {
                match lookup.step(now_ms) {
                    Step::Ask(id) => {
                        if !asks.ask(id, &self.wanted[index], self.budget, (index, self.tell.clone())) {
                            lookup.answer(id, Answer::Failed);
                        }
                    }
                    Step::Wait { until_ms } => {
                        wake_ms = wake_ms.min(until_ms);
                        return true;
                    }
                    Step::Found(_) | Step::Missing => return false,
                }
            }
        });
        wake_ms
    }

    /// Takes what was answered, which is waited for until `wake_ms`.
    fn hear(&mut self, wake_ms: u64) {
        let wait = Duration::from_millis(wake_ms.saturating_sub(self.asks.now_ms()));
        let mut next = self.told.recv_timeout(wait);
        while let Ok((index, id, heard)) = next {
            if let Some(lookup) = self.open.get_mut(&index) {
                let answer = match heard {
                    Heard::Found(finding) if (self.fits)(index, &finding) => {
                        self.found[index].get_or_insert(finding);
                        Answer::Found
                    }
                    Heard::Found(_) | Heard::Missing => Answer::Missing,
                    Heard::Failed => Answer::Failed,
                };
                lookup.answer(id, answer);
            }
            next = self.told.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
    }
}

impl Asks {
    pub fn new(neighbours: Neighbours, caches: Vec<Origin>, admission: Admission, hedge: Duration) -> Asks {
        let priorities = caches.iter().map(|cache| cache.priority().unwrap_or(PRIORITY_UNKNOWN));
        let state = State {
            health: Upstreams::new(priorities),
            offers: Remembered::new(OFFER_HOLD_MS, OFFERS_MAX),
            absent: Remembered::new(ABSENT_HOLD_MS, ABSENT_MAX),
            on_their_way: HashMap::new(),
        };
        let pools = caches.iter().map(|_| Pool::new("upstream", ASKS_MAX, ASKS_WAITING_MAX)).collect();
        Asks { neighbours, caches, admission, hedge, pools, since: Instant::now(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn health(&self) -> (Vec<Health>, u64) {
        (self.lock().health.health().to_vec(), self.now_ms())
    }

    /// Offers for each of `wanted`, in order, of other nodes first; `budget` is for each that caches are asked for, from
    /// when it is first asked for. Those that are in `not` are not asked.
    pub fn find(self: &Arc<Self>, wanted: &[Query<'_>], budget: Duration, not: &Tried) -> Vec<Option<Arc<Offer>>> {
        let mut offers = if not.mesh { vec![None; wanted.len()] } else { self.find_in_mesh(wanted) };
        let open: Vec<usize> = (0..wanted.len()).filter(|&index| offers[index].is_none()).collect();
        let questions: Vec<Question> = open.iter().map(|&index| wanted[index].question()).collect();
        let found = self.look(&questions, &|nth, finding| wanted[open[nth]].fits(finding), budget, &not.caches);
        for (index, finding) in open.into_iter().zip(found) {
            if let Some(Finding::Offer(offer)) = finding {
                offers[index] = Some(offer);
            }
        }
        offers
    }

    /// The same of other nodes alone, which are asked before any cache.
    pub fn find_in_mesh(&self, wanted: &[Query<'_>]) -> Vec<Option<Arc<Offer>>> {
        if self.neighbours.is_alone() {
            return vec![None; wanted.len()];
        }
        let hash_parts: Vec<&str> = wanted.iter().map(Query::hash_part).collect();
        let held = self.neighbours.find(&hash_parts).into_iter().zip(wanted);
        let offer = |(held, query): (Option<Held>, &Query<'_>)| {
            let offer = Offer::of_member(held?);
            query.is_of(&offer).then(|| Arc::new(offer))
        };
        held.map(offer).collect()
    }

    /// Where an output came out, if another node says so, or an upstream with a trusted signature.
    pub fn realisation(self: &Arc<Self>, id: &DrvOutput, budget: Duration) -> Option<Arc<Realisation>> {
        if let Some(found) = self.neighbours.realisation(id) {
            return Some(Arc::new(found));
        }
        match self.look(&[Question::Output(id.clone())], &|_, _| true, budget, &BTreeSet::new()).pop()?? {
            Finding::Output(realisation) => Some(realisation),
            _ => None,
        }
    }

    /// The same in the form from Nix 2.35 on.
    pub fn build_trace(self: &Arc<Self>, key: &BuildTraceKey, budget: Duration) -> Option<Arc<BuildTrace>> {
        if let Some(found) = self.neighbours.build_trace(key) {
            return Some(Arc::new(found));
        }
        match self.look(&[Question::Trace(key.clone())], &|_, _| true, budget, &BTreeSet::new()).pop()?? {
            Finding::Trace(trace) => Some(trace),
            _ => None,
        }
    }

    /// What each upstream says of the path with this hash part, in the order that they are asked in. Whoever signed it:
    /// it is to be compared with what is known of the path.
    pub fn narinfos(&self, hash_part: &str) -> impl Iterator<Item = (UpstreamId, NarInfo)> {
        let order = self.lock().health.order(self.now_ms());
        order.into_iter().filter_map(move |upstream| {
            if !self.lock().health.begin(upstream, self.now_ms()) {
                return None;
            }
            let narinfo = self.timed(upstream, || self.caches[upstream].narinfo(hash_part)).ok()?;
            Some((upstream, narinfo))
        })
    }

    /// What was printed by a build of this derivation, somewhere.
    pub fn log(self: &Arc<Self>, derivation: &StorePath, budget: Duration) -> Option<Arc<Vec<u8>>> {
        if let Some(found) = self.neighbours.log(derivation) {
            return Some(Arc::new(found));
        }
        match self.look(&[Question::Log(derivation.clone())], &|_, _| true, budget, &BTreeSet::new()).pop()?? {
            Finding::Log(log) => Some(log),
            _ => None,
        }
    }

    /// What is found for each question; `fits` says whether it is what its asker wants.
    fn look(
        self: &Arc<Self>,
        wanted: &[Question],
        fits: &dyn Fn(usize, &Finding) -> bool,
        budget: Duration,
        not: &BTreeSet<UpstreamId>,
    ) -> Vec<Option<Finding>> {
        let (tell, told) = mpsc::channel();
        let (found, open) = (vec![None; wanted.len()], HashMap::new());
        let mut looking = Looking { asks: self, wanted, fits, budget, not, found, open, begun: 0, tell, told };
        loop {
            looking.begin();
            let wake_ms = looking.step();
            if looking.is_done() {
                return looking.found;
            }
            if !looking.open.is_empty() {
                looking.hear(wake_ms);
            }
        }
    }

    /// The offer that is known, or how to look for what is wanted. Where outputs came out is not remembered: another
    /// build may come out elsewhere.
    fn begin(
        &self,
        wanted: &Question,
        fits: &dyn Fn(&Finding) -> bool,
        budget: Duration,
        not: &BTreeSet<UpstreamId>,
    ) -> Result<Finding, Lookup> {
        let (state, now_ms) = (self.lock(), self.now_ms());
        if let Question::Path(hash_part) = wanted
            && let Some(offer) = state.offers.get(hash_part, now_ms)
            && offer.upstream().is_some_and(|upstream| !not.contains(&upstream))
        {
            let known = Finding::Offer(offer.clone());
            if fits(&known) {
                return Ok(known);
            }
        }
        let asked = |id: &UpstreamId| !not.contains(id) && state.absent.get(&(*id, wanted.clone()), now_ms).is_none();
        let order = state.health.order(now_ms).into_iter().filter(asked).collect();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Err(Lookup::new(order, now_ms, millis(budget), millis(self.hedge)))
    }

    /// Whether the listener will hear something.
    fn ask(self: &Arc<Self>, id: UpstreamId, wanted: &Question, budget: Duration, listener: Listener) -> bool {
        let key = (id, wanted.clone());
        let mut state = self.lock();
        if let Some(listeners) = state.on_their_way.get_mut(&key) {
            listeners.push(listener);
            return true;
        }
        let now_ms = self.now_ms();
        if !state.health.begin(id, now_ms) {
            return false;
        }
        state.on_their_way.insert(key.clone(), vec![listener]);
        drop(state);
        let (asks, until, asked) = (self.clone(), Instant::now() + budget, key.clone());
        let submitted = self.pools[id].submit(move || {
            // Behind a queue that was too long nobody waits any more.
            match Instant::now() < until {
                true => asks.tell(&asked, asks.hear(id, &asked.1)),
                false => asks.abandon(&asked, now_ms),
            }
        });
        if !submitted {
            self.abandon(&key, now_ms);
        }
        true
    }

    /// A question was not put after all.
    fn abandon(&self, key: &Key, began_ms: u64) {
        self.lock().health.abandoned(key.0, began_ms);
        self.tell(key, Heard::Failed);
    }

    fn tell(&self, key: &Key, heard: Heard) {
        let listeners = self.lock().on_their_way.remove(key).unwrap_or_default();
        for (index, tell) in listeners {
            // Who does not listen any more has what it wanted.
            let _ = tell.send((index, key.0, heard.clone()));
        }
    }

    fn hear(&self, id: UpstreamId, wanted: &Question) -> Heard {
        let cache = &self.caches[id];
        let answer = self.timed(id, || wanted.put_to(cache, id, &self.admission));
        let mut state = self.lock();
        let now_ms = self.now_ms();
        match answer {
            Ok(Ok(finding)) => {
                if let (Question::Path(hash_part), Finding::Offer(offer)) = (wanted, &finding) {
                    state.offers.insert(hash_part.clone(), offer.clone(), now_ms);
                }
                return Heard::Found(finding);
            }
            Ok(Err(why)) => {
                tracing::debug!(upstream = cache.base(), ?wanted, why, "an upstream's answer is not used")
            }
            Err(Refusal::Missing) => {}
            Err(Refusal::Failed(_)) => return Heard::Failed,
        }
        // What was written meanwhile may be there, and by now nowhere else.
        if cache.is_bucket() {
            return Heard::Missing;
        }
        state.absent.insert((id, wanted.clone()), (), now_ms);
        Heard::Missing
    }

    /// Puts a question and notes how the upstream took it.
    fn timed<T>(&self, id: UpstreamId, question: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
        let cache = &self.caches[id];
        let info = cache.info().map_err(|refusal| match refusal {
            Refusal::Missing => Refusal::Failed("it has no nix-cache-info; is it a binary cache?".into()),
            failed => failed,
        });
        let (answer, took) = match info {
            Ok(info) => {
                if cache.priority().is_none() {
                    self.lock().health.set_priority(id, info.priority);
                }
                let since = Instant::now();
                let answer = question();
                (answer, since.elapsed())
            }
            Err(refusal) => (Err(refusal), Duration::ZERO),
        };
        match &answer {
            Ok(_) | Err(Refusal::Missing) => {
                let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.lock().health.answered(id, answer.is_ok(), took_us);
            }
            Err(Refusal::Failed(why)) => self.failed(id, why),
        }
        answer
    }

    /// Notes that an upstream failed; says so when it is left alone from now on.
    pub fn failed(&self, id: UpstreamId, why: &str) {
        let (mut state, now_ms) = (self.lock(), self.now_ms());
        let is_open = |state: &State| {
            state.health.health().get(id).is_some_and(|health| health.breaker.phase(now_ms) == Phase::Open)
        };
        let was_open = is_open(&state);
        state.health.failed(id, now_ms);
        let upstream = self.caches[id].base();
        match !was_open && is_open(&state) {
            true => tracing::warn!(upstream, why, "an upstream cache keeps failing; it is left alone for a while"),
            false => tracing::debug!(upstream, why, "an upstream cache failed"),
        }
    }

    /// An offer turned out to be none.
    pub fn withdraw(&self, path: &StorePath, upstream: UpstreamId) {
        let (mut state, now_ms) = (self.lock(), self.now_ms());
        let hash_part = path.hash_part().to_string();
        if state.offers.get(&hash_part, now_ms).is_some_and(|known| known.upstream() == Some(upstream)) {
            state.offers.forget(&hash_part);
        }
        // Who failed to read it does not ask it again; for others one slow answer does not make it absent.
        if self.caches[upstream].is_bucket() {
            return;
        }
        state.absent.insert((upstream, Question::Path(hash_part)), (), now_ms);
    }
}
