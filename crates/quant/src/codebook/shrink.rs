use tensorpress_tensor::cluster::{assign, cluster, entropy};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::{Error, Result, Target};

/// Smaller codebooks out of a trained one, each made of the one before (Mao et al., 2024, for the codebooks of VQGANs): codes of
/// the large one become codes of a smaller one by a look-up, so one stream of latents has many rates.
///
/// ```
/// use tensorpress_quant::codebook::NestedCodebooks;
/// use tensorpress_tensor::{linalg::Par, ndarray::array};
///
/// let words = array![[0.0], [0.2], [5.0], [5.1]];
/// let nested = NestedCodebooks::shrink(words.view(), Some(&[3, 1, 1, 1]), &[2], 0, Par::Seq)?;
/// assert_eq!(nested.recode(&[0, 1, 2, 3], 1)?.iter().collect::<std::collections::BTreeSet<_>>().len(), 2);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct NestedCodebooks {
    levels: Vec<Level>,
}

#[derive(Debug, Clone, PartialEq)]
struct Level {
    words: Array2<f32>,
    /// What each word of the first codebook becomes.
    of_first: Vec<u16>,
    /// How often each word is used.
    counts: Vec<u64>,
}

impl NestedCodebooks {
    /// Codebooks of `sizes`, falling, out of `words` `[entries, size]`, each by k-means of the words of the one before; a word counts
    /// as often as it is used (all alike without `counts`). Level 0 is the first.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 65,536 words, none, or sizes that do not fall from fewer than their number to 1;
    /// `ShapeMismatch` for counts of another length; `Numerical` for words that are not finite.
    pub fn shrink(
        words: ArrayView2<'_, f32>,
        counts: Option<&[u64]>,
        sizes: &[usize],
        seed: u64,
        par: Par,
    ) -> Result<Self> {
        let entries = words.nrows();
        if !(1..=1 << 16).contains(&entries) {
            return Err(Error::invalid(format!("{entries} words: allowed are 1 to 65536")));
        }
        Target::new("words", words).check_finite()?;
        let counts = counts.map_or_else(|| vec![1; entries], <[u64]>::to_vec);
        if counts.len() != entries {
            return Err(Error::shape(format!("{} counts of {entries} words", counts.len())));
        }
        let words = words.as_standard_layout().into_owned();
        let of_first = (0..entries).map(|i| i as u16).collect();
        let mut levels = vec![Level { words, of_first, counts }];
        for size in sizes {
            let before = levels.last().expect("the first is there");
            if *size == 0 || *size >= before.words.nrows() {
                let message =
                    format!("{size} words out of {}: sizes must fall", before.words.nrows());
                return Err(Error::invalid(message));
            }
            let weights: Vec<f32> = before.counts.iter().map(|count| *count as f32).collect();
            let made = cluster(before.words.view(), Some(&weights), *size, seed, par)?;
            let of_first =
                before.of_first.iter().map(|code| made.codes[usize::from(*code)]).collect();
            let mut counts = vec![0; *size];
            for (code, count) in made.codes.iter().zip(&before.counts) {
                counts[usize::from(*code)] += count;
            }
            levels.push(Level { words: made.means, of_first, counts });
        }
        Ok(Self { levels })
    }

    /// Codebooks, the first among them.
    #[must_use]
    pub fn levels(&self) -> usize {
        self.levels.len()
    }

    /// The words of a level, `[entries, size]`.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn words(&self, level: usize) -> ArrayView2<'_, f32> {
        self.levels[level].words.view()
    }

    fn level(&self, level: usize) -> Result<&Level> {
        let none = || Error::invalid(format!("codebook {level} of {}", self.levels.len()));
        self.levels.get(level).ok_or_else(none)
    }

    /// Codes of the first codebook as codes of a level.
    ///
    /// # Errors
    /// `InvalidArgument` for a level or codes that are not there.
    pub fn recode(&self, codes: &[u16], level: usize) -> Result<Vec<u16>> {
        let of_first = &self.level(level)?.of_first;
        let recode = |code: &u16| {
            let beyond = || Error::invalid(format!("code {code} of {} words", of_first.len()));
            of_first.get(usize::from(*code)).copied().ok_or_else(beyond)
        };
        codes.iter().map(recode).collect()
    }

    /// The nearest words of a level for vectors `[vectors, size]`.
    ///
    /// # Errors
    /// `InvalidArgument` for a level that is not there, `ShapeMismatch` for vectors of another size, `Numerical` for those that are
    /// not finite.
    pub fn encode(&self, vectors: ArrayView2<'_, f32>, level: usize, par: Par) -> Result<Vec<u16>> {
        let words = &self.level(level)?.words;
        if vectors.ncols() != words.ncols() {
            let message = format!("vectors of {}, words of {}", vectors.ncols(), words.ncols());
            return Err(Error::shape(message));
        }
        Target::new("vectors", vectors).check_finite()?;
        Ok(assign(vectors.as_standard_layout().view(), words, par))
    }

    /// Bits a code of a level takes: packed, and by Shannon's entropy of the counts (which an entropy coder comes near to).
    ///
    /// # Errors
    /// `InvalidArgument` for a level that is not there.
    pub fn bits(&self, level: usize) -> Result<(f64, f64)> {
        let level = self.level(level)?;
        let packed = level.words.nrows().next_power_of_two().ilog2();
        Ok((packed.into(), entropy(&level.counts)))
    }
}
