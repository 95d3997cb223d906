//! How long the work behind each node of a graph still takes.
//!
//! `longest_to_goal[n]` = estimate of n plus the longest chain of dependants above it: what a scheduler with free
//! hands must start first. One pass in reverse topological order, O(nodes + edges).

/// Estimated milliseconds from the start of each node to the end of the last one that waits for it.
///
/// `deps[n]` are the nodes that n waits for. Nodes on a cycle (which no valid derivation graph has) keep their own
/// estimate, so that the caller can still report them.
pub fn longest_to_goal(deps: &[Vec<usize>], estimate_ms: &[u64]) -> Vec<u64> {
    let mut longest: Vec<u64> = estimate_ms.to_vec();
    let mut dependants_left = vec![0usize; deps.len()];
    for &dep in deps.iter().flatten() {
        dependants_left[dep] += 1;
    }
    let mut open: Vec<usize> = (0..deps.len()).filter(|&n| dependants_left[n] == 0).collect();
    while let Some(node) = open.pop() {
        for &dep in &deps[node] {
            longest[dep] = longest[dep].max(estimate_ms[dep].saturating_add(longest[node]));
            dependants_left[dep] -= 1;
            if dependants_left[dep] == 0 {
                open.push(dep);
            }
        }
    }
    longest
}

/// A node that waits for itself, directly or not, or for one that does.
pub fn in_circle(deps: &[Vec<usize>]) -> Option<usize> {
    let mut left: Vec<usize> = deps.iter().map(Vec::len).collect();
    let mut dependants = vec![Vec::new(); deps.len()];
    for (node, deps) in deps.iter().enumerate() {
        deps.iter().for_each(|dep| dependants[*dep].push(node));
    }
    let mut open: Vec<usize> = (0..deps.len()).filter(|&node| left[node] == 0).collect();
    while let Some(done) = open.pop() {
        for &dependant in &dependants[done] {
            left[dependant] -= 1;
            if left[dependant] == 0 {
                open.push(dependant);
            }
        }
    }
    left.iter().position(|left| *left > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found() {
        assert_eq!(in_circle(&[vec![], vec![0], vec![1, 0], vec![0]]), None);
        assert_eq!(in_circle(&[vec![], vec![0, 2], vec![1], vec![0]]), Some(1));
        assert_eq!(in_circle(&[vec![0]]), Some(0));
    }

    #[test]
    fn a_node_weighs_as_much_as_the_longest_chain_above_it() {
        // 0 <- 1 <- 2 and 0 <- 3
        let deps = vec![vec![], vec![0], vec![1], vec![0]];
        assert_eq!(longest_to_goal(&deps, &[5, 10, 1, 100]), vec![105, 11, 1, 100]);
    }
}
