//! One question to several upstreams, within a time.
//!
//! Invariants:
//! - they are asked in order, each at most once: the next when all before have said no or failed, or when none has
//!   answered for the hedge;
//! - the first that has it wins; later answers change nothing;
//! - after the deadline there is an answer, whoever is still silent.

use std::collections::VecDeque;

use super::UpstreamId;

/// What an upstream said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Found,
    Missing,
    Failed,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Ask(UpstreamId),
    /// Nothing before this time, unless an answer comes.
    Wait {
        until_ms: u64,
    },
    Found(UpstreamId),
    /// Nobody has it, as far as is known.
    Missing,
}

#[derive(Clone, Debug)]
pub struct Lookup {
    to_ask: VecDeque<UpstreamId>,
    open: Vec<UpstreamId>,
    found: Option<UpstreamId>,
    asked_ms: u64,
    deadline_ms: u64,
    hedge_ms: u64,
}

impl Lookup {
    /// `order`: whom to ask. `budget_ms`: from now to the deadline. `hedge_ms`: silence before the next is asked too.
    pub fn new(order: Vec<UpstreamId>, now_ms: u64, budget_ms: u64, hedge_ms: u64) -> Lookup {
        Lookup {
            to_ask: order.into(),
            open: Vec::new(),
            found: None,
            asked_ms: now_ms,
            deadline_ms: now_ms.saturating_add(budget_ms),
            hedge_ms,
        }
    }

    pub fn step(&mut self, now_ms: u64) -> Step {
        if let Some(id) = self.found {
            return Step::Found(id);
        }
        if now_ms >= self.deadline_ms {
            return Step::Missing;
        }
        let hedged_ms = self.asked_ms.saturating_add(self.hedge_ms);
        match self.to_ask.front().copied() {
            None if self.open.is_empty() => Step::Missing,
            None => Step::Wait { until_ms: self.deadline_ms },
            Some(_) if !self.open.is_empty() && now_ms < hedged_ms => {
                Step::Wait { until_ms: hedged_ms.min(self.deadline_ms) }
            }
            Some(id) => {
                self.to_ask.pop_front();
                self.open.push(id);
                self.asked_ms = now_ms;
                Step::Ask(id)
            }
        }
    }

    pub fn answer(&mut self, id: UpstreamId, answer: Answer) {
        let open = self.open.len();
        self.open.retain(|asked| *asked != id);
        if self.open.len() < open && answer == Answer::Found && self.found.is_none() {
            self.found = Some(id);
        }
    }
}
