//! Chunks from node to node, beside the same bytes on bare connections: the mesh's own benchmark, told here.

use anyhow::Result;

use crate::Plan;
use crate::report::Report;
use crate::store::run_of;

/// NARs of real files that move between two nodes, at scale 1.
const NARS_MIB: usize = 1024;

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let (mib, repeats) = (plan.scaled(NARS_MIB, 64).to_string(), plan.reps.to_string());
    let variables = [("SHOAL_BENCH_MIB", mib.as_str()), ("SHOAL_BENCH_REPEATS", repeats.as_str())];
    let rows = run_of("shoal-mesh", "mesh", &[], &variables)?;
    rows.iter().try_for_each(|[what, value, bar]| report.tell(what, value, bar))
}
