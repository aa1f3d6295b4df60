//! What a checkpoint calls the tensors of a plan.

use crate::architecture::Plan;

/// The plan of a model with the names of this checkpoint; `contains` asks for a tensor.
pub(crate) fn named(mut plan: Plan, contains: &dyn Fn(&str) -> bool) -> Plan {
    let usual = plan.prefix;
    let first = plan.embedding.table.clone();
    // Blocks are looked for as well: the table may be there under the head's name alone.
    let block = plan.blocks.first().and_then(|block| block.linears().into_iter().next());
    let probes: Vec<String> = std::iter::once(first).chain(block.map(|spec| spec.name)).collect();
    let with = |name: &str, prefix: &str| match name.strip_prefix(usual) {
        Some(rest) => format!("{prefix}{rest}"),
        None => name.to_owned(),
    };
    let there = |prefix: &&str| probes.iter().any(|probe| contains(&with(probe, prefix)));
    let others = plan.prefixes.iter().copied();
    // Without any, errors name the usual one.
    let prefix = std::iter::once(usual).chain(others).find(there).unwrap_or(usual);
    plan.rename(&|name| {
        let name = with(name, prefix);
        // What old checkpoints call the weight of a norm.
        let old = name.strip_suffix(".weight").map(|stem| format!("{stem}.gamma"));
        match old {
            Some(old) if !contains(&name) && contains(&old) => old,
            _ => name,
        }
    });
    // One matrix for both may be stored under either name.
    let tied = plan.head.matrix == plan.embedding.table;
    if tied && !contains(&plan.embedding.table) && contains("lm_head.weight") {
        plan.embedding.table = "lm_head.weight".to_owned();
        plan.head.matrix = plan.embedding.table.clone();
    }
    plan
}

/// The bias of a norm or a linear layer: `x.weight` to `x.bias`, `x.gamma` to `x.beta`.
pub(crate) fn bias_of(weight: &str) -> String {
    match weight.strip_suffix(".gamma") {
        Some(stem) => format!("{stem}.beta"),
        None => format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight)),
    }
}
