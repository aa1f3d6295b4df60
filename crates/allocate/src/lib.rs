//! Sharing a budget out: which level (bits, rank, sparsity, a whole recipe) each unit of a model gets.
//!
//! A [`Table`] says what each unit (a matrix, a group, an expert, a block) costs and loses at each level. A [`Solver`]
//! chooses one level a unit within a budget:
//!
//! | solver | finds | of |
//! |---|---|---|
//! | [`Exact`] | the least sum of errors | dynamic programming over what no other choice beats, cut by Lagrange's bound |
//! | [`Lagrange`] | the same but for a last unit or two, in no time | the multiplier, and what still fits |
//! | [`Minimax`] | the least largest error | ALDS |
//! | [`Ordered`] | as many units as fit at their best level, in an order | Layer-Wise Quantization |
//! | [`Evolution`] | the least of any objective, such as the KL divergence of the whole model | EvoPress |
//! | [`Programme`] | the least sum of errors under linear rules ("at least two experts at 3 bits") | MC-MoE |
//! | [`TwoBudgets`] | the least sum of errors within bytes and time | a second multiplier |
//!
//! Around them: [`Curve`] is one search for every budget, [`Exact::least_cost_of`] asks for no more loss than a uniform
//! setting, [`forms`] and [`Significance`] make units and tables, and a [`Stopwatch`] fills in the costs.
//!
//! Where choices meet their neighbours, or are no table, there are programmes of their own:
//!
//! | programme | chooses | of |
//! |---|---|---|
//! | [`depth`] | activations, merged convolutions and kernels of a chain | Depth Compression, LayerMerge |
//! | [`width`] | channels by densities, and whole architectures | PreCropping, SynFlow, Compressor |
//! | [`token_rates`] | tokens that each layer prunes and merges | DiffRate |
//! | [`PrimalDual`] | counts whose loss and cost are any smooth functions | UVC |
//!
//! Where errors follow a law, the optimum has a form of its own: [`closed`]. Orders come from [`scores`].
//!
//! ```
//! use tensorpress_allocate::{Choice, Exact, Solver, Table, Unit};
//!
//! # fn main() -> tensorpress_tensor::Result<()> {
//! let unit = |name: &str, scale: f64| {
//!     let levels = [(2, 1.0), (3, 0.25), (4, 0.06)];
//!     Unit::new(name, levels.map(|(bits, error)| Choice::new(bits * 1000, scale * error)))
//! };
//! let table = Table::new([unit("q", 1.0), unit("k", 10.0), unit("v", 100.0)])?;
//! let found = Exact::new().solve(&table, 9000)?;
//! assert_eq!((found.choices, found.cost), (vec![0, 1, 2], 9000));
//! # Ok(())
//! # }
//! ```

pub mod closed;
mod curve;
pub mod depth;
mod evolution;
mod exact;
mod forms;
mod knapsack;
mod minimax;
mod moe;
mod ordered;
mod paths;
mod primal_dual;
mod programme;
pub mod scores;
mod solver;
mod stopwatch;
mod table;
mod token_rates;
mod two_budgets;
pub mod width;

pub use curve::Curve;
pub use evolution::{Evolution, Round};
pub use exact::{Exact, Lagrange};
pub use forms::{Form, forms};
pub use minimax::Minimax;
pub use moe::Significance;
pub use ordered::Ordered;
pub use primal_dual::{Counted, Counts, PrimalDual};
pub use programme::{Programme, Rule};
pub use solver::{Allocation, Solver};
pub use stopwatch::Stopwatch;
pub use table::{Choice, Table, Unit};
pub use token_rates::{Kept, Tokens, token_rates};
pub use two_budgets::TwoBudgets;
