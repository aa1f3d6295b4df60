//! Sizes of architectures beside known ones, and the genetic search beside all of a grid.

use tensorpress_allocate::width::{Architecture, Genetic, Space};
use tensorpress_tensor::{Error, ErrorKind};

#[test]
fn sizes_are_those_of_known_models() {
    // RoBERTa base, which CodeBERT is, and BERT-like widths by hand.
    let roberta = Architecture::new(50_265, 12, 768, 12, 3072);
    assert_eq!(roberta.parameters(514), 124_645_632.0);
    assert_eq!(Architecture::new(1, 0, 2, 1, 3).parameters(1), 3.0 * 2.0 + 4.0 + 6.0);
    // Of one token in one layer of width 1: four matrices of 1, two of the MLP, a score and its mixing, its softmax.
    assert_eq!(Architecture::new(1, 1, 1, 1, 1).flops(1), 8.0 + 4.0 + 4.0 + 5.0);
    assert!(roberta.is_valid() && !Architecture::new(1, 1, 10, 3, 1).is_valid());
    assert!(
        !Architecture::new(1, 0, 10, 2, 1).is_valid()
            && !Architecture::new(1, 1, 1, 0, 1).is_valid()
    );
    let absurd = Architecture::new(usize::MAX, usize::MAX, usize::MAX, 1, usize::MAX);
    assert!(absurd.parameters(usize::MAX).is_finite() && absurd.flops(usize::MAX).is_finite());
}

fn exhaustive(space: &Space, megabytes: f64) -> f64 {
    let levels = space.levels();
    let all: usize = levels.iter().product();
    let at = |mut at: usize| {
        let genes = levels.map(|n| {
            let gene = at % n;
            at /= n;
            gene
        });
        space.fitness(&space.at(&genes).unwrap(), megabytes)
    };
    (0..all).map(at).max_by(f64::total_cmp).unwrap()
}

#[test]
fn genes_find_the_fittest_of_a_grid() {
    let space = Space::new(
        (1..=10).map(|n| 1000 * n).collect::<Vec<_>>(),
        (1..=12).collect::<Vec<_>>(),
        (1..=12).map(|n| 16 * n).collect::<Vec<_>>(),
        [1, 2, 3, 4, 6, 8, 12],
        (1..=12).map(|n| 64 * n).collect::<Vec<_>>(),
    );
    for megabytes in [3.0, 10.0, 25.0] {
        let best = exhaustive(&space, megabytes);
        let mut found = 0;
        let mut least = f64::INFINITY;
        for seed in 0..20 {
            let search = Genetic::new().with_seed(seed);
            let (architecture, fitness) = space.search(&search, megabytes).unwrap();
            assert_eq!(fitness, space.fitness(&architecture, megabytes));
            assert_eq!(
                (architecture, fitness),
                space.search(&search, megabytes).unwrap(),
                "the same seed, the same"
            );
            assert!(fitness <= best && architecture.is_valid());
            found += usize::from(fitness == best);
            least = least.min(fitness);
            if seed == 0 {
                let size = architecture.parameters(512) * 4.0 / 1e6;
                println!(
                    "{megabytes} MB: {architecture:?} of {size:.3} MB, {:.3} GFLOPs",
                    architecture.flops(512) / 1e9
                );
            }
        }
        println!(
            "  the best of {}, {best:.4}, by {found} of 20 seeds; at worst {least:.4}",
            space.levels().iter().product::<usize>()
        );
        assert!(least > best - 0.25 * best.abs() && found >= 10);
    }
}

#[test]
fn the_search_is_checked() {
    let kind = |error: Error| error.kind();
    let genetic = Genetic::new().with_generations(2).with_population(0);
    let mut one = |_: &[usize]| Ok(1.0);
    assert_eq!(kind(genetic.search(&[2, 0], &mut one).unwrap_err()), ErrorKind::InvalidArgument);
    assert_eq!(genetic.search(&[], &mut one).unwrap().0, [0usize; 0]);
    assert_eq!(
        kind(genetic.search(&[2], &mut |_| Ok(f64::NAN)).unwrap_err()),
        ErrorKind::Numerical
    );
    assert_eq!(
        kind(genetic.search(&[2], &mut |_| Ok(f64::NEG_INFINITY)).unwrap_err()),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        kind(genetic.search(&[2], &mut |_| Err(Error::insufficient("none"))).unwrap_err()),
        ErrorKind::InsufficientData
    );
    let space = Space::new([100], [1], [10], [3], [4]);
    assert_eq!(kind(space.search(&genetic, 1.0).unwrap_err()), ErrorKind::InvalidArgument);
    let space = Space::new([100], [1], [12], [3], [4]).with_tokens(8).with_weight_bytes(1.0);
    assert_eq!(kind(space.search(&genetic, f64::NAN).unwrap_err()), ErrorKind::Numerical);
    assert_eq!(space.search(&genetic, 0.0).unwrap().0, Architecture::new(100, 1, 12, 3, 4));
    assert_eq!(
        kind(Space::new([], [1], [12], [3], [4]).search(&genetic, 1.0).unwrap_err()),
        ErrorKind::InvalidArgument
    );
    assert!(space.at(&[0, 0]).is_none() && space.at(&[1, 0, 0, 0, 0]).is_none());
    // However it mutates and crosses, chances outside 0 to 1 included.
    let odd = genetic.with_crossover(f64::NAN).with_mutation(7.0);
    assert!(odd.search(&[3, 3], &mut |genes| Ok(genes[0] as f64)).is_ok());
}
