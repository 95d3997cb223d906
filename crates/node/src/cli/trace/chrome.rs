//! A build as a trace of Chrome's format, which its viewers and Perfetto load.
//!
//! A node is a process and a slot of it a thread; a run is a span there, and what was done for it are spans within. What
//! waits is on no node: it is an asynchronous span of process 0. The critical path is coloured and its spans are joined by
//! arrows.
//!
//! Source: the Trace Event Format (times in microseconds; `X` complete, `b`/`e` asynchronous, `s`/`f` flow, `M` metadata).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{list, ms, short};

/// One of the viewer's colours.
const CRITICAL: &str = "terrible";
/// The process of what waits.
const WAITING: u64 = 0;

pub fn trace(build: &Value, derivations: &[Value]) -> Value {
    let mut events = Events::default();
    events.name("process_name", WAITING, 0, "waits for a place");
    for (number, derivation) in (0..).zip(derivations) {
        events.derivation(number, derivation);
    }
    events.arrows(derivations);
    json!({
        "displayTimeUnit": "ms",
        "otherData": { "goals": build["goals"], "began_unix_ms": build["began_unix_ms"], "state": build["state"] },
        "traceEvents": events.all,
    })
}

#[derive(Default)]
struct Events {
    all: Vec<Value>,
    /// Numbers of processes by node, and the slots that were named.
    nodes: BTreeMap<String, u64>,
    slots: BTreeSet<(u64, u64)>,
}

fn us(value: &Value, name: &str) -> u64 {
    ms(value, name) * 1_000
}

impl Events {
    fn name(&mut self, what: &str, pid: u64, tid: u64, name: &str) {
        self.all.push(json!({ "ph": "M", "name": what, "pid": pid, "tid": tid, "args": { "name": name } }));
    }

    /// The process and the thread of a run.
    fn place(&mut self, run: &Value) -> (u64, u64) {
        let node = run["node"].as_str().unwrap_or_default();
        let next = self.nodes.len() as u64 + 1;
        let pid = *self.nodes.entry(node.to_owned()).or_insert(next);
        if pid == next {
            self.name("process_name", pid, 0, node);
        }
        let tid = run["slot"].as_u64().unwrap_or(0);
        if self.slots.insert((pid, tid)) {
            self.name("thread_name", pid, tid, &format!("slot {tid}"));
        }
        (pid, tid)
    }

    fn derivation(&mut self, number: u64, derivation: &Value) {
        let name = short(&derivation["drv_path"]);
        let mut ready = us(derivation, "ready_ms");
        for run in list(derivation, "runs") {
            let (began, ended) = (us(run, "began_ms"), us(run, "ended_ms"));
            if ready < began {
                for (phase, ts) in [("b", ready), ("e", began)] {
                    let event = json!({ "ph": phase, "cat": "wait", "name": name, "id": number, "pid": WAITING, "tid": 0, "ts": ts });
                    self.all.push(event);
                }
            }
            ready = ended;
            let (pid, tid) = self.place(run);
            let mut span = json!({
                "ph": "X", "cat": "run", "name": name, "pid": pid, "tid": tid, "ts": began, "dur": ended.saturating_sub(began),
                "args": { "derivation": derivation["drv_path"], "end": run["end"], "critical": derivation["critical"].is_u64() },
            });
            if derivation["critical"].is_u64() {
                span["cname"] = CRITICAL.into();
            }
            self.all.push(span);
            for stage in list(run, "stages") {
                let (began, ended) = (us(stage, "began_ms"), us(stage, "ended_ms"));
                self.all.push(json!({
                    "ph": "X", "cat": "stage", "name": stage["stage"], "pid": pid, "tid": tid, "ts": began,
                    "dur": ended.saturating_sub(began),
                }));
            }
        }
    }

    /// From the end of each derivation on the critical path to where the next was placed.
    fn arrows(&mut self, derivations: &[Value]) {
        let placed = |derivation: &&Value| derivation["critical"].is_u64() && list(derivation, "runs").next().is_some();
        let mut path: Vec<&Value> = derivations.iter().filter(placed).collect();
        path.sort_by_key(|derivation| derivation["critical"].as_u64());
        for (number, pair) in (0u64..).zip(path.windows(2)) {
            let (Some(before), Some(after)) = (list(pair[0], "runs").last(), list(pair[1], "runs").next()) else {
                continue;
            };
            let (from, to) = (self.place(before), self.place(after));
            // Within the span that it leaves, which ends where the next event may begin.
            let left = us(before, "ended_ms").saturating_sub(1).max(us(before, "began_ms"));
            self.all.push(json!({
                "ph": "s", "cat": "critical", "name": "critical path", "id": number, "pid": from.0, "tid": from.1, "ts": left,
            }));
            self.all.push(json!({
                "ph": "f", "bp": "e", "cat": "critical", "name": "critical path", "id": number, "pid": to.0, "tid": to.1,
                "ts": us(after, "began_ms"),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn nodes_are_processes_and_what_held_the_build_up_is_marked() {
        let (build, derivations) = super::super::tests::told();
        let trace = trace(&build, &derivations);
        let lines: Vec<String> = trace["traceEvents"].as_array().unwrap().iter().map(Value::to_string).collect();
        expect![[r#"
            {"args":{"name":"waits for a place"},"name":"process_name","ph":"M","pid":0,"tid":0}
            {"args":{"name":"n1"},"name":"process_name","ph":"M","pid":1,"tid":0}
            {"args":{"name":"slot 0"},"name":"thread_name","ph":"M","pid":1,"tid":0}
            {"args":{"critical":true,"derivation":"/nix/store/00000000000000000000000000000000-a.drv","end":"lost"},"cat":"run","cname":"terrible","dur":200000,"name":"a","ph":"X","pid":1,"tid":0,"ts":0}
            {"cat":"stage","dur":10000,"name":"claim","ph":"X","pid":1,"tid":0,"ts":0}
            {"cat":"stage","dur":190000,"name":"offer","ph":"X","pid":1,"tid":0,"ts":10000}
            {"cat":"wait","id":0,"name":"a","ph":"b","pid":0,"tid":0,"ts":200000}
            {"cat":"wait","id":0,"name":"a","ph":"e","pid":0,"tid":0,"ts":300000}
            {"args":{"name":"n0"},"name":"process_name","ph":"M","pid":2,"tid":0}
            {"args":{"name":"slot 0"},"name":"thread_name","ph":"M","pid":2,"tid":0}
            {"args":{"critical":true,"derivation":"/nix/store/00000000000000000000000000000000-a.drv","end":"built"},"cat":"run","cname":"terrible","dur":300000,"name":"a","ph":"X","pid":2,"tid":0,"ts":300000}
            {"cat":"stage","dur":10000,"name":"claim","ph":"X","pid":2,"tid":0,"ts":300000}
            {"cat":"stage","dur":10000,"name":"inputs","ph":"X","pid":2,"tid":0,"ts":310000}
            {"cat":"stage","dur":280000,"name":"build","ph":"X","pid":2,"tid":0,"ts":320000}
            {"cat":"wait","id":1,"name":"b","ph":"b","pid":0,"tid":0,"ts":600000}
            {"cat":"wait","id":1,"name":"b","ph":"e","pid":0,"tid":0,"ts":650000}
            {"args":{"critical":true,"derivation":"/nix/store/00000000000000000000000000000000-b.drv","end":"built"},"cat":"run","cname":"terrible","dur":250000,"name":"b","ph":"X","pid":1,"tid":0,"ts":650000}
            {"cat":"stage","dur":10000,"name":"claim","ph":"X","pid":1,"tid":0,"ts":650000}
            {"cat":"stage","dur":10000,"name":"offer","ph":"X","pid":1,"tid":0,"ts":660000}
            {"cat":"stage","dur":210000,"name":"build","ph":"X","pid":1,"tid":0,"ts":670000}
            {"cat":"stage","dur":20000,"name":"copies","ph":"X","pid":1,"tid":0,"ts":880000}
            {"cat":"critical","id":0,"name":"critical path","ph":"s","pid":2,"tid":0,"ts":599999}
            {"bp":"e","cat":"critical","id":0,"name":"critical path","ph":"f","pid":1,"tid":0,"ts":650000}"#]].assert_eq(&lines.join("\n"));
    }
}
