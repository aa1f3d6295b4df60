use crate::linalg::Par;

/// Buffers reused between calls, and the parallelism a call may use.
#[derive(Debug, Default)]
pub struct Scratch {
    pool: Vec<Vec<f32>>,
    par: Par,
}

impl Scratch {
    /// An empty workspace whose products run with `par`.
    #[must_use]
    pub fn new(par: Par) -> Self {
        Self { pool: Vec::new(), par }
    }

    /// Parallelism of the products.
    #[must_use]
    pub fn par(&self) -> Par {
        self.par
    }

    /// A buffer of `len` values, contents unspecified; give it back with [`Scratch::put`].
    #[must_use]
    pub fn take(&mut self, len: usize) -> Vec<f32> {
        let mut buffer = self.pool.pop().unwrap_or_default();
        buffer.resize(len, 0.0);
        buffer
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: Vec<f32>) {
        self.pool.push(buffer);
    }
}
