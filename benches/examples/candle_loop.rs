//! A KV cache of tensorpress inside a decoding loop on candle tensors.
//!
//! An engine keeps its tensors and its products; for each layer it hands queries, keys and values of the new token over
//! as slices, and gets the attention back. The model is a small random one: what matters is the loop. The same tokens go
//! through attention in candle itself, so that the program checks what it shows.

use candle_core::{D, Device, Result, Tensor};
use tensorpress_kvcache::{Cache, KvRecipe};
use tensorpress_tensor::Scratch;
use tensorpress_tensor::ndarray::{ArrayView3, ArrayViewMut3};

const LAYERS: usize = 2;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
const HIDDEN: usize = HEADS * DIM;
const STEPS: usize = 96;

/// Projections of one layer, `[out, in]`.
struct Layer {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
}

impl Layer {
    fn random(seed: u64) -> Result<Self> {
        let weights = |rows: usize, part: u64| noise(seed * 10 + part, (rows, HIDDEN), 0.06);
        Ok(Self {
            q: weights(HIDDEN, 0)?,
            k: weights(KV_HEADS * DIM, 1)?,
            v: weights(KV_HEADS * DIM, 2)?,
            o: weights(HIDDEN, 3)?,
        })
    }
}

/// Deterministic noise of about unit size times `size`.
fn noise(seed: u64, shape: (usize, usize), size: f64) -> Result<Tensor> {
    let value = |i: usize| {
        let gaussian = tensorpress_tensor::linalg::gaussian(seed, i as u64);
        (gaussian * size) as f32
    };
    Tensor::from_vec((0..shape.0 * shape.1).map(value).collect(), shape, &Device::Cpu)
}

fn error(e: tensorpress_tensor::Error) -> candle_core::Error {
    candle_core::Error::Msg(e.to_string())
}

/// One token through one layer, its past in `cache`: where an engine calls us.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, cache: &mut Cache) -> Result<Tensor> {
    let slice = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let (q, k, v) = (slice(q)?, slice(k)?, slice(v)?);
    let view = |values| ArrayView3::from_shape((1, KV_HEADS, DIM), values).expect("one token");
    cache.append(view(&k[..]), view(&v[..])).map_err(error)?;
    let mut out = vec![0.0; HIDDEN];
    let queries = ArrayView3::from_shape((1, HEADS, DIM), &q[..]).expect("one token");
    let mixed = ArrayViewMut3::from_shape((1, HEADS, DIM), &mut out[..]).expect("one token");
    cache.attend(queries, None, mixed, &mut Scratch::default()).map_err(error)?;
    Tensor::from_vec(out, (1, HIDDEN), &Device::Cpu)
}

/// The same by candle's products over all keys and values so far, `[tokens, kv_heads * dim]`.
fn attend_plainly(q: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let group = HEADS / KV_HEADS;
    let mut heads = Vec::new();
    for head in 0..HEADS {
        let q = q.narrow(1, head * DIM, DIM)?;
        let k = keys.narrow(1, head / group * DIM, DIM)?.contiguous()?;
        let v = values.narrow(1, head / group * DIM, DIM)?.contiguous()?;
        let scores = (q.contiguous()?.matmul(&k.t()?)? / (DIM as f64).sqrt())?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        heads.push(weights.matmul(&v)?);
    }
    Tensor::cat(&heads, 1)
}

/// Runs the loop; the hidden state after every step.
fn decode(
    layers: &[Layer],
    mut mix: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let mut states = Vec::new();
    for step in 0..STEPS {
        // In the place of the embedding of the token that was chosen.
        let mut x = noise(100 + step as u64, (1, HIDDEN), 1.0)?;
        for (index, layer) in layers.iter().enumerate() {
            let project = |w: &Tensor| x.matmul(&w.t()?);
            let (q, k, v) = (project(&layer.q)?, project(&layer.k)?, project(&layer.v)?);
            let mixed = mix(index, &q, &k, &v)?;
            x = (&x + mixed.matmul(&layer.o.t()?)?)?;
        }
        states.push(x);
    }
    Ok(states)
}

fn apart(a: &[Tensor], b: &[Tensor]) -> Result<f64> {
    let norm = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f32>();
    let (mut difference, mut size) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        difference += f64::from(norm(&(a - b)?)?);
        size += f64::from(norm(b)?);
    }
    Ok((difference / size).sqrt())
}

fn main() -> Result<()> {
    let layers = (0..LAYERS as u64).map(Layer::random).collect::<Result<Vec<_>>>()?;
    let mut past: Vec<Option<(Tensor, Tensor)>> = vec![None; LAYERS];
    let plain = decode(&layers, |index, q, k, v| {
        let (keys, values) = match past[index].take() {
            None => (k.clone(), v.clone()),
            Some((keys, values)) => (Tensor::cat(&[&keys, k], 0)?, Tensor::cat(&[&values, v], 0)?),
        };
        let mixed = attend_plainly(q, &keys, &values);
        past[index] = Some((keys, values));
        mixed
    })?;
    for (line, most) in [
        ("f32", 1e-5),
        ("f16", 1e-3),
        ("kivi(bits=8)", 1e-2),
        ("kivi(bits=4)", 5e-2),
        ("kivi(bits=4) | h2o(keep=0.75, recent=16, stride=8)", 0.5),
    ] {
        let recipe: KvRecipe = line.parse().map_err(error)?;
        let mut caches = recipe.caches(LAYERS, HEADS, KV_HEADS, DIM).map_err(error)?;
        let states = decode(&layers, |index, q, k, v| attend(q, k, v, &mut caches[index]))?;
        let (error, bytes) =
            (apart(&states, &plain)?, caches.iter().map(Cache::bytes).sum::<u64>());
        println!("{line:52} {bytes:7} bytes of keys and values, states {error:.2e} apart");
        assert!(error <= most, "{line}: {error}");
    }
    Ok(())
}
