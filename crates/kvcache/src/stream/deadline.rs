use tensorpress_tensor::{Error, Result};

/// How the next chunk comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// As the stream of this level.
    Stream(usize),
    /// As text, whose keys and values are computed anew: nothing is lost.
    Text,
}

/// What is known while chunks are loaded one after another, against the time by which all shall be there: the rule of
/// CacheGen's section 5.3. The best choice is taken with which the chunks that are left, all of them alike, arrive in
/// time at the bandwidth measured last; where none does, the one that is fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct Deadline {
    /// Seconds from the start by which all must be there.
    seconds: f64,
    /// Bytes of each chunk at each level, best first.
    bytes: Vec<Vec<u64>>,
    /// Bytes of each chunk as text, and seconds to compute it, where it can be.
    text: Vec<Option<(u64, f64)>>,
    /// Bytes a second.
    bandwidth: f64,
}

impl Deadline {
    /// Chunks of these bytes at each level, the best level first, within `seconds`; `bandwidth` in bytes a second counts
    /// until some is measured.
    ///
    /// # Errors
    /// `InvalidArgument` for times or bandwidths that are not positive numbers; `ShapeMismatch` where chunks have other
    /// numbers of levels, or none.
    pub fn new(seconds: f64, bandwidth: f64, bytes: Vec<Vec<u64>>) -> Result<Self> {
        for (key, value) in [("seconds", seconds), ("bandwidth", bandwidth)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::invalid(format!(
                    "{key} = {value}: allowed are numbers above 0"
                )));
            }
        }
        let levels = bytes.first().map_or(0, Vec::len);
        if !bytes.is_empty() && (levels == 0 || bytes.iter().any(|b| b.len() != levels)) {
            return Err(Error::shape("bytes: as many levels for every chunk, and at least one"));
        }
        let text = vec![None; bytes.len()];
        Ok(Self { seconds, bytes, text, bandwidth })
    }

    /// Chunks can come as text too: bytes, and seconds to compute each.
    ///
    /// # Errors
    /// `ShapeMismatch` for another number of chunks, `InvalidArgument` for seconds that are negative or no number.
    pub fn with_text(mut self, text: &[(u64, f64)]) -> Result<Self> {
        if text.len() != self.bytes.len() {
            let (found, chunks) = (text.len(), self.bytes.len());
            return Err(Error::shape(format!("{found} texts of {chunks} chunks")));
        }
        if let Some((_, seconds)) = text.iter().find(|(_, s)| !(s.is_finite() && *s >= 0.0)) {
            return Err(Error::invalid(format!(
                "seconds = {seconds}: allowed are numbers from 0 on"
            )));
        }
        self.text = text.iter().copied().map(Some).collect();
        Ok(self)
    }

    /// Tells how long the last bytes took.
    pub fn measured(&mut self, bytes: u64, seconds: f64) {
        let bandwidth = bytes as f64 / seconds;
        if bandwidth.is_finite() && bandwidth > 0.0 {
            self.bandwidth = bandwidth;
        }
    }

    /// How chunk `next` shall come, `elapsed` seconds after the start; nothing where there is no such chunk.
    #[must_use]
    pub fn choose(&self, next: usize, elapsed: f64) -> Option<Choice> {
        let left = self.seconds - elapsed;
        let streams = self.bytes.get(next..).filter(|chunks| !chunks.is_empty())?;
        let text: Option<f64> = self.text[next..]
            .iter()
            .map(|text| text.map(|(bytes, seconds)| bytes as f64 / self.bandwidth + seconds))
            .sum();
        let levels = (0..streams[0].len()).map(|level| {
            let bytes: u64 = streams.iter().map(|chunk| chunk[level]).sum();
            (Choice::Stream(level), bytes as f64 / self.bandwidth)
        });
        let all: Vec<(Choice, f64)> =
            text.map(|seconds| (Choice::Text, seconds)).into_iter().chain(levels).collect();
        let in_time = all.iter().find(|(_, seconds)| *seconds <= left);
        let fastest = || all.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        in_time.or_else(fastest).map(|(choice, _)| *choice)
    }
}
