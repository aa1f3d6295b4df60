//! What a map on the outputs costs: decoding a 4-bit matrix behind rotations of several blocks, beside the matrix alone, all
//! taking turns on one thread in one run. `--test` runs everything once, small. Every decode is checked against the
//! rotation of the plain one before it is timed.

mod turns;

use std::sync::Arc;

use tensorpress_quant::{GridSpec, Rtn};
use tensorpress_tensor::kernels::cpu_name;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array2, s};
use tensorpress_tensor::node::{Accum, Map, Rotation, Side, Transformed, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{Compress, Node, Scratch};
use turns::{Contender, take_turns};

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let rounds = if test { 1 } else { 12 };
    println!("{}", cpu_name().unwrap_or_else(|| "a CPU without a name".into()));
    let (square, tall) =
        if test { ([1024, 256], [576, 300]) } else { ([4096, 4096], [4608, 4096]) };
    table(square, &[8, 64, 512, 1024], rounds);
    // No power of two: 16 x 36.
    table(tall, &[576], rounds);
}

/// Decodes a matrix alone and behind rotations of these blocks.
fn table([rows, cols]: [usize; 2], blocks: &[usize], rounds: usize) {
    let weight =
        Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(1, (r * cols + c) as u64) as f32);
    let plain = || {
        let rounded =
            Rtn::new(GridSpec::new(4, 128)).compress(weight.view(), &Calibration::none(cols));
        rounded.expect("rounds").node.boxed()
    };
    let mut nodes: Vec<(String, Box<dyn Node>)> = vec![("plain".into(), plain())];
    for block in blocks {
        let map: Arc<dyn Map> = Arc::new(Rotation::new(rows, *block, 1).expect("a divisor"));
        let node = Transformed::new(Side::Out, map.clone(), plain()).expect("fits").boxed();
        check(&*map, &*plain(), &*node);
        nodes.push((format!("rotation of {block}"), node));
    }
    let mut outs = vec![Array2::<f32>::zeros((rows, cols)); nodes.len() + 1];
    let mut fill = outs.pop().expect("one more");
    let mut contenders: Vec<Contender<'_>> = nodes
        .iter()
        .zip(&mut outs)
        .map(|((name, node), out)| {
            let mut scratch = Scratch::default();
            Contender::new(name, 4 * rows * cols, move || {
                let decoded =
                    node.decode_rows(0..rows, out.view_mut(), Accum::Replace, &mut scratch);
                decoded.expect("decodes");
            })
        })
        .collect();
    contenders.push(Contender::new("a plain write", 4 * rows * cols, || {
        std::hint::black_box(&mut fill).fill(1.0);
    }));
    take_turns(&mut contenders, rounds);
    println!("decoding 4 bits, {rows} x {cols}, one thread, best (median) of {rounds} turns");
    let (base, middle) = (contenders[0].best(), contenders[0].median());
    for contender in &contenders {
        let (best, median) = (contender.best(), contender.median());
        println!(
            "{:>18}: {:8.2} ({:.2}) ms, {:.2} ({:.2}) x plain, {:.1} GB/s written",
            contender.name,
            best * 1e3,
            median * 1e3,
            best / base,
            median / middle,
            contender.bytes as f64 / best / 1e9,
        );
    }
}

/// Some columns of the node against the rotation of the plain ones.
fn check(map: &dyn Map, plain: &dyn Node, node: &dyn Node) {
    let (plain, node) = (decode(plain).expect("decodes"), decode(node).expect("decodes"));
    let columns = plain.slice(s![.., ..4]).t().to_owned();
    let mut expected = Array2::zeros(columns.dim());
    map.apply(columns.view(), expected.view_mut());
    for ((c, r), e) in expected.indexed_iter() {
        assert!((e - node[[r, c]]).abs() < 1e-4, "[{r}, {c}]");
    }
}
