use std::collections::BTreeMap;

use tensorpress_model::Source;
use tensorpress_tensor::stats::{Stream, Supply};
use tensorpress_tensor::{DynCompress, Error, Result};

use crate::recipe::{Chain, Recipe};

/// Which method compresses which weight.
pub(super) struct Plan {
    methods: Vec<Planned>,
    /// Index of the method by name of the weight; linear layers and tables.
    by_name: BTreeMap<String, usize>,
    /// The methods are levels, of which each weight gets one as the work goes on.
    mixed: bool,
}

/// A method and its text in reports.
pub(super) struct Planned {
    pub(super) text: String,
    pub(super) method: Box<dyn DynCompress>,
    /// Stays in use by some weight.
    used: bool,
}

impl Plan {
    /// `rewritten`: the model changes before that, so that there may be nothing else to do.
    pub(super) fn new(source: &Source, recipe: &Recipe, rewritten: bool) -> Result<Self> {
        let linears: Vec<String> = (0..source.blocks())
            .flat_map(|block| source.linears(block))
            .map(|linear| linear.name)
            .collect();
        let tables = super::tables::names(source)?;
        for rule in recipe.layers() {
            if !linears.iter().chain(&tables).any(|name| rule.matches(name)) {
                return Err(Error::invalid(format!(
                    "layer: match = `{}`: matches no weight; there are {} ...",
                    rule.pattern(),
                    linears.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
                )));
            }
        }
        let mut plan = Self { methods: Vec::new(), by_name: BTreeMap::new(), mixed: false };
        let mut seen = BTreeMap::new();
        for name in &linears {
            if let Some(chain) = recipe.chain_for(name) {
                let index = plan.index_of(chain, &mut seen)?;
                plan.by_name.insert(name.clone(), index);
            }
        }
        for name in &tables {
            // Embeddings and head are compressed only where a rule says so.
            let Some(chain) = recipe.rule_for(name).and_then(|rule| rule.chain()) else { continue };
            let index = plan.index_of(chain, &mut seen)?;
            let needs = plan.methods[index].method.needs();
            if !needs.is_none() && !super::tables::is_seen(source, name, &needs)? {
                return Err(Error::unsupported(format!(
                    "`{chain}` needs calibration, which a table of embeddings does not get: give this weight a \
                     [[layer]] with rtn, or `skip = true`, before the one that matches it"
                ))
                .in_tensor(name));
            }
            plan.by_name.insert(name.clone(), index);
        }
        for index in plan.by_name.values() {
            plan.methods[*index].used = true;
        }
        if plan.by_name.is_empty() && !rewritten {
            return Err(Error::invalid("the recipe leaves every weight as it is"));
        }
        Ok(plan)
    }

    /// The levels of a mix, the first of which all weights have to begin with.
    pub(super) fn of_levels(source: &Source, levels: &[Chain], with_tables: bool) -> Result<Self> {
        let mut plan = Self { methods: Vec::new(), by_name: BTreeMap::new(), mixed: true };
        for chain in levels {
            plan.index_of(chain, &mut BTreeMap::new())?;
        }
        plan.methods.iter_mut().for_each(|planned| planned.used = true);
        let linears = (0..source.blocks()).flat_map(|block| source.linears(block));
        plan.by_name.extend(linears.map(|linear| (linear.name, 0)));
        if with_tables && let Some(head) = super::tables::head(source)? {
            plan.by_name.insert(head, 0);
        }
        if plan.by_name.is_empty() {
            return Err(Error::invalid("the model has no weights that could be compressed"));
        }
        Ok(plan)
    }

    /// How many levels there are.
    pub(super) fn levels(&self) -> usize {
        self.methods.len()
    }

    /// Each weight gets a level as the work goes on.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// A level has steps, of which each weight gets one.
    pub(super) fn shared_step(&self, level: usize) -> bool {
        let method = &self.methods[level].method;
        method.shared_bits().is_some() && method.loses_by_steps()
    }

    /// A level leaves nothing of a matrix.
    pub(super) fn drops(&self, level: usize) -> bool {
        self.methods[level].method.drops()
    }

    /// Gives a weight its level.
    pub(super) fn assign(&mut self, name: &str, level: usize) {
        self.by_name.insert(name.to_owned(), level);
    }

    /// Takes weights out.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| keep(name));
    }

    /// What is wanted of the caller for a weight.
    pub(super) fn supplies(&self, name: &str) -> Vec<Supply> {
        let Some(index) = self.index(name) else { return Vec::new() };
        if !self.mixed {
            return self.methods[index].method.needs().of_caller().to_vec();
        }
        // Whatever it will be, and what its errors cost.
        let all =
            self.methods.iter().flat_map(|planned| planned.method.needs().of_caller().to_vec());
        all.chain([Supply::OUTPUT_FISHER_DIAGONAL]).collect()
    }

    fn index_of(&mut self, chain: &Chain, seen: &mut BTreeMap<String, usize>) -> Result<usize> {
        let canonical = chain.canonical();
        if let Some(index) = seen.get(&canonical) {
            return Ok(*index);
        }
        let planned = Planned { text: chain.to_string(), method: chain.build()?, used: false };
        self.methods.push(planned);
        seen.insert(canonical, self.methods.len() - 1);
        Ok(self.methods.len() - 1)
    }

    /// Number of the method for a weight; nothing if it stays as it is.
    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// No weight is compressed.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn method(&self, index: usize) -> &Planned {
        &self.methods[index]
    }

    /// Bits a weight that the matrices of a method take together, if one step in common is to be found for them.
    pub(super) fn shared_bits(&self, index: usize) -> Option<f64> {
        let planned = &self.methods[index];
        planned.method.shared_bits().filter(|_| planned.used && !self.mixed)
    }

    /// Some method wants a statistic of this stream.
    pub(super) fn reads(&self, stream: Stream) -> bool {
        let reads = |planned: &Planned| planned.used && planned.method.needs().reads(stream);
        self.methods.iter().any(reads)
    }

    /// The first method that needs statistics, if one does.
    pub(super) fn needs_calibration(&self) -> Option<&str> {
        let needy = |planned: &&Planned| planned.used && !planned.method.needs().is_none();
        self.methods.iter().find(needy).map(|planned| planned.text.as_str())
    }
}
