//! What builds took at other nodes: each node asks one other now and then for what it does not know, by a digest of what it
//! knows, and writes down what it learned. `shoal_grid::estimates` says what is told, and what is believed.

use std::sync::Arc;
use std::time::Duration;

use shoal_grid::random::Random;
use shoal_mesh::builds::ask;
use shoal_mesh::handle::Mesh;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, ESTIMATES_MAX, Took};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::members::builds;
use crate::build::service::BuildService;

/// Between one node and the next. Words spread as rumours do: a thousand nodes have heard one after ten such times or so.
const PERIOD_MS: u64 = 20_000;
/// How often a node without others looks for one.
const ALONE_PERIOD: Duration = Duration::from_secs(1);
/// Between two questions to a node that had more to tell than an answer holds.
const PAUSE: Duration = Duration::from_millis(250);
/// A question that is not answered by then is given up: the next node is asked.
const ANSWERED: Duration = Duration::from_secs(30);
/// Full answers of one node: more than twice as many as the largest table takes.
const ANSWERS_MAX: usize = 2 * shoal_grid::estimates::ESTIMATES_MAX / ESTIMATES_MAX + 1;

/// Asks others for as long as it is polled.
pub async fn compare_notes(service: Arc<BuildService>, mesh: Mesh) {
    let me = mesh.me();
    let seed =
        me.iter().fold(service.began_unix_ms, |seed, byte| seed.wrapping_mul(257).wrapping_add(u64::from(*byte)));
    let mut random = Random::new(seed);
    loop {
        let Some(node) = partner(&service, &mesh, &mut random) else {
            sleep(ALONE_PERIOD).await;
            continue;
        };
        if let Err(error) = learn_from(&service, &mesh, node).await {
            tracing::debug!(node = service.node_name(&node, ""), %error, "a node does not say what builds took there");
        }
        sleep(Duration::from_millis(PERIOD_MS / 2 + random.below(PERIOD_MS))).await;
        let keeper = service.clone();
        // Without a thread it is written the next time.
        let _ = spawn_blocking(move || keeper.history.keep_if_due()).await;
    }
}

fn partner(service: &BuildService, mesh: &Mesh, random: &mut Random) -> Option<NodeKey> {
    let roster = mesh.roster();
    let me = mesh.me();
    let is_quiet = |node: &NodeKey| service.grid().is_some_and(|grid| grid.neighbours.is_quiet(node));
    let others = roster.peers.iter().filter(builds).map(|peer| peer.record.node);
    let others: Vec<NodeKey> = others.filter(|node| *node != me && !is_quiet(node)).collect();
    random.pick(&others).copied()
}

async fn learn_from(service: &Arc<BuildService>, mesh: &Mesh, node: NodeKey) -> anyhow::Result<()> {
    let mut known_there = 0;
    for _ in 0..ANSWERS_MAX {
        let asker = service.clone();
        let digest = spawn_blocking(move || asker.history.digest(known_there)).await?;
        let (known, rows) = timeout(ANSWERED, answer(mesh, node, digest)).await??;
        known_there = known;
        let is_full = rows.len() == ESTIMATES_MAX;
        let learner = service.clone();
        let is_news = spawn_blocking(move || learner.history.merge(&rows)).await?;
        // What is not believed is told again and again.
        if !is_full || !is_news {
            break;
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// How many packages a node knows, and what of them is news to who has this digest.
async fn answer(mesh: &Mesh, node: NodeKey, digest: Vec<u32>) -> anyhow::Result<(usize, Vec<Took>)> {
    let mut answer = ask(mesh.links(), node, &BuildAsk::Estimates(digest)).await?;
    loop {
        match answer.next().await? {
            BuildFrame::Alive => {}
            BuildFrame::Estimates { known, rows } => return Ok((known as usize, rows)),
            BuildFrame::Refused { text, .. } => anyhow::bail!(text),
            _ => anyhow::bail!("it answers what nobody asked"),
        }
    }
}
