use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::{Error, Result};

/// Genetic search for the greatest fitness, as Compressor searches architectures (Shi et al., *Compressing Pre-trained
/// Models of Code into 3 MB*, ASE 2022): a population whose fitter members, found in small tournaments, have children that
/// take each gene from either parent and mutate some. The fittest so far goes on as it is, so that nothing gets worse.
///
/// For levels under a budget there is [`crate::Evolution`]; here the fitness alone judges.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Genetic {
    population: usize,
    generations: usize,
    crossover: f64,
    mutation: f64,
    seed: u64,
}

impl Default for Genetic {
    fn default() -> Self {
        Self { population: 50, generations: 100, crossover: 0.8, mutation: 0.2, seed: 0 }
    }
}

impl Genetic {
    /// The search with its defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many live at a time. Default 50; at least 2.
    #[must_use]
    pub fn with_population(mut self, population: usize) -> Self {
        self.population = population.max(2);
        self
    }

    /// Sets the number of generations. Default 100.
    #[must_use]
    pub fn with_generations(mut self, generations: usize) -> Self {
        self.generations = generations;
        self
    }

    /// Sets how likely a child has two parents in place of one. Default 0.8.
    #[must_use]
    pub fn with_crossover(mut self, chance: f64) -> Self {
        self.crossover = chance;
        self
    }

    /// Sets how likely a gene of a child is drawn anew. Default 0.2.
    #[must_use]
    pub fn with_mutation(mut self, chance: f64) -> Self {
        self.mutation = chance;
        self
    }

    /// Sets the seed. Default 0.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The fittest that was found, a level of each gene, with its fitness. `levels` says how many each has; a fitness of minus
    /// infinity is that of what can not be.
    ///
    /// # Errors
    /// `InvalidArgument` for a gene without levels, or if nothing that was tried can be; `Numerical` for a fitness that is NaN;
    /// those of the fitness.
    pub fn search(
        &self,
        levels: &[usize],
        fitness: &mut dyn FnMut(&[usize]) -> Result<f64>,
    ) -> Result<(Vec<usize>, f64)> {
        if let Some(gene) = levels.iter().position(|levels| *levels == 0) {
            return Err(Error::invalid(format!("gene {gene} has no level to choose")));
        }
        let mut random = SplitMix::new(self.seed);
        let mut judge = |genes: Vec<usize>| match fitness(&genes)? {
            fit if fit.is_nan() => {
                Err(Error::numerical(format!("the fitness of {genes:?} is NaN")))
            }
            fit => Ok((fit, genes)),
        };
        let draw = |random: &mut SplitMix, n: usize| (random.next_u64() % n.max(1) as u64) as usize;
        let mut living = Vec::with_capacity(self.population);
        for _ in 0..self.population {
            living.push(judge(levels.iter().map(|n| draw(&mut random, *n)).collect())?);
        }
        for _ in 0..self.generations {
            // The first of equals, whatever came later.
            living.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut next = vec![living[0].clone()];
            while next.len() < self.population {
                // The better of two, as they are sorted.
                let mut parent =
                    || draw(&mut random, living.len()).min(draw(&mut random, living.len()));
                let (mother, father) = (parent(), parent());
                let two = random.next_f64() < self.crossover;
                let mut child = living[mother].1.clone();
                for (gene, level) in child.iter_mut().enumerate() {
                    if two && random.next_u64().is_multiple_of(2) {
                        *level = living[father].1[gene];
                    }
                    if random.next_f64() < self.mutation {
                        *level = draw(&mut random, levels[gene]);
                    }
                }
                next.push(judge(child)?);
            }
            living = next;
        }
        let best = living.into_iter().reduce(|best, one| if one.0 > best.0 { one } else { best });
        match best {
            Some((fit, genes)) if fit > f64::NEG_INFINITY => Ok((genes, fit)),
            _ => Err(Error::invalid("nothing that was tried can be")),
        }
    }
}
