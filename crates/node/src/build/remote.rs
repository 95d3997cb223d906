//! Builds of other nodes, here.

use std::sync::{Arc, OnceLock, Weak};

use shoal_mesh::builds::{Answer, Execute};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, Reason};

/// When a node that starts may be asked again.
const START_RETRY_MS: u32 = 500;

/// What other nodes ask of this one reaches its builds through this: links are open before there are builds.
#[derive(Clone, Default)]
pub struct Host(Arc<OnceLock<Weak<dyn Execute>>>);

impl Host {
    /// From now on `executor` answers.
    pub fn set(&self, executor: Weak<dyn Execute>) {
        // Of two, which nobody makes, the first counts.
        let _ = self.0.set(executor);
    }
}

impl Execute for Host {
    fn asked(&self, peer: NodeKey, ask: BuildAsk, answer: Answer) {
        if let Some(executor) = self.0.get().and_then(Weak::upgrade) {
            return executor.asked(peer, ask, answer);
        }
        let text = "this node starts, or stops".to_owned();
        // Nobody hears it who has gone.
        answer.say_at_once(BuildFrame::Refused { reason: Reason::Draining, text, retry_after_ms: START_RETRY_MS });
    }
}
