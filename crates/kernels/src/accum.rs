/// Whether a result replaces the output or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accum {
    /// `out = result`
    #[default]
    Replace,
    /// `out += result`
    Add,
}
