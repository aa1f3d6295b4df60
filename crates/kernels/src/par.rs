/// How many threads a call may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Par {
    /// The calling thread alone.
    #[default]
    Seq,
    /// Work cut for this many threads of the current rayon pool; 0 and 1 mean [`Par::Seq`].
    Threads(usize),
    /// Work cut for all threads of the current rayon pool.
    Rayon,
}

impl Par {
    /// Number of threads work is cut for.
    #[must_use]
    pub fn threads(self) -> usize {
        match self {
            Self::Seq => 1,
            Self::Threads(n) => n.max(1),
            Self::Rayon => rayon::current_num_threads(),
        }
    }
}
