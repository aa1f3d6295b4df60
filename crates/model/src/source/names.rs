//! What a checkpoint calls the tensors of a plan.

use std::cell::RefCell;
use std::collections::BTreeSet;

use tensorpress_tensor::{Checkpoint, Result};

use crate::architecture::Plan;

/// The plan of a model with the names of this checkpoint; `contains` asks for a tensor, `claims` whether an index names
/// one that is missing, `alias` for the one that stands for another which was left out.
pub(crate) fn named<'a>(
    mut plan: Plan,
    contains: &dyn Fn(&str) -> bool,
    claims: &dyn Fn(&str) -> bool,
    alias: &dyn Fn(&str) -> Option<&'a str>,
) -> Plan {
    let usual = plan.prefix;
    let knows = |name: &str| contains(name) || claims(name);
    let first = plan.embedding.table.clone();
    // Blocks are looked for as well: the table may be there under the head's name alone.
    let block = plan.blocks.first().and_then(|block| block.linears().into_iter().next());
    let probes: Vec<String> = std::iter::once(first).chain(block.map(|spec| spec.name)).collect();
    let with = |name: &str, prefix: &str| match name.strip_prefix(usual) {
        Some(rest) => format!("{prefix}{rest}"),
        None => name.to_owned(),
    };
    let there = |prefix: &&str| probes.iter().any(|probe| knows(&with(probe, prefix)));
    let others = plan.prefixes.iter().copied();
    // Without any, errors name the usual one.
    let prefix = std::iter::once(usual).chain(others).find(there).unwrap_or(usual);
    plan.rename(&|name| {
        let name = with(name, prefix);
        // What old checkpoints call the weight of a norm.
        let old = name.strip_suffix(".weight").map(|stem| format!("{stem}.gamma"));
        match old {
            Some(old) if !knows(&name) && knows(&old) => old,
            _ => name,
        }
    });
    // One matrix for both may be stored under either name.
    let tied = plan.head.matrix == plan.embedding.table;
    if tied && !contains(&plan.embedding.table) && contains("lm_head.weight") {
        plan.embedding.table = "lm_head.weight".to_owned();
        plan.head.matrix = plan.embedding.table.clone();
    }
    // The checkpoint may say so itself, also where the config does not.
    for name in [&mut plan.embedding.table, &mut plan.head.matrix] {
        if let Some(other) = alias(name).filter(|other| !contains(name) && contains(other)) {
            *name = other.to_owned();
        }
    }
    plan
}

/// That every tensor is there that the index names and the plan knows, but for the head: it is for who needs one to ask
/// for it.
pub(crate) fn check_named(checkpoint: &Checkpoint, plan: &Plan) -> Result<()> {
    if checkpoint.missing().next().is_none() {
        return Ok(());
    }
    let mut plan = plan.clone();
    (plan.head.transform, plan.head.bias) = (None, None);
    plan.head.matrix = plan.embedding.table.clone();
    let known = RefCell::new(BTreeSet::new());
    plan.rename(&|name| {
        known.borrow_mut().insert(name.to_owned());
        name.to_owned()
    });
    let known = known.into_inner();
    let needed = |missing: &&str| {
        // The weight's own name, or the one it is a part of: any prefix that ends before a dot.
        let dots = missing.match_indices('.').map(|(at, _)| &missing[..at]);
        dots.chain([*missing]).any(|name| known.contains(name))
    };
    match checkpoint.missing().find(needed) {
        Some(missing) => checkpoint.bytes(missing).map(drop),
        None => Ok(()),
    }
}

/// The bias of a norm or a linear layer: `x.weight` to `x.bias`, `x.gamma` to `x.beta`.
pub(crate) fn bias_of(weight: &str) -> String {
    match weight.strip_suffix(".gamma") {
        Some(stem) => format!("{stem}.beta"),
        None => format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight)),
    }
}
