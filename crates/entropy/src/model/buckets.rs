use tensorpress_tensor::{Error, Result};

/// Wide alphabets as bytes and escape bits: an exponential Golomb split.
///
/// A bucket holds the values that agree in their leading bits after `2^precision` is added; the bits below are sent as
/// they are. Small values have buckets of their own, and a bucket is never wider than 2^-precision of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    precision: u32,
}

impl Buckets {
    /// Buckets that keep `precision` bits after the leading one, 0 to 3: at most 33, 63, 121 or 233 buckets for
    /// values of 32 bits.
    ///
    /// # Errors
    /// `InvalidArgument` beyond 3: the buckets would not fit a byte.
    pub fn new(precision: u32) -> Result<Self> {
        if precision > 3 {
            return Err(Error::invalid(format!("precision {precision}: allowed are 0 to 3")));
        }
        Ok(Self { precision })
    }

    /// Bucket of a value, the bits to send beside it, and how many those are.
    #[must_use]
    pub fn split(self, value: u32) -> (u8, u32, u32) {
        // With 1 added at the precision's place, values below 2^precision have a leading one too.
        let shifted = u64::from(value) + (1 << self.precision);
        let bits = shifted.ilog2() - self.precision;
        let top = (shifted >> bits) as u32 - (1 << self.precision);
        let bucket = (bits << self.precision) + top;
        (bucket as u8, (shifted & ((1 << bits) - 1)) as u32, bits)
    }

    /// How many bits are sent beside a bucket.
    #[must_use]
    pub fn extra_bits(self, bucket: u8) -> u32 {
        u32::from(bucket) >> self.precision
    }

    /// The value of a bucket and its bits.
    ///
    /// # Errors
    /// `Corruption` if no 32-bit value has them.
    pub fn join(self, bucket: u8, extra: u32) -> Result<u32> {
        let bits = self.extra_bits(bucket);
        let top = u64::from(bucket) & ((1 << self.precision) - 1);
        if bits > 32 || u64::from(extra) >> bits.min(63) != 0 {
            return Err(Error::corruption(format!("bucket {bucket} with bits {extra:#x}")));
        }
        let shifted = (top + (1 << self.precision)) << bits | u64::from(extra);
        u32::try_from(shifted - (1 << self.precision))
            .map_err(|_| Error::corruption(format!("bucket {bucket} is beyond 32 bits")))
    }

    /// Splits values into their buckets and a stream of escape bits (least significant first).
    #[must_use]
    pub fn split_all(self, values: &[u32]) -> (Vec<u8>, Vec<u8>) {
        let mut bits = crate::bits::BitWriter::default();
        let buckets = values
            .iter()
            .map(|value| {
                let (bucket, extra, count) = self.split(*value);
                bits.write(extra, count);
                bucket
            })
            .collect();
        (buckets, bits.finish())
    }

    /// Undoes [`Buckets::split_all`].
    ///
    /// # Errors
    /// `Corruption`, or `InsufficientData` if the bits end early.
    pub fn join_all(self, buckets: &[u8], bits: &[u8]) -> Result<Vec<u32>> {
        let mut bits = crate::bits::BitReader::new(bits);
        let join = |bucket: &u8| {
            let count = self.extra_bits(*bucket);
            if count > 32 {
                return Err(Error::corruption(format!("bucket {bucket} is beyond 32 bits")));
            }
            self.join(*bucket, bits.read(count)?)
        };
        let values = buckets.iter().map(join).collect::<Result<_>>()?;
        if !bits.is_finished() {
            return Err(Error::corruption("bits behind the last bucket"));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_one_bucket() {
        for precision in 0..=3 {
            let buckets = Buckets::new(precision).unwrap();
            let edges = (0..32).flat_map(|b| [(1u32 << b) - 1, 1 << b, (1 << b) + 1]);
            let mut values: Vec<u32> =
                (0..5000).chain(edges).chain([u32::MAX, u32::MAX - 1]).collect();
            values.sort_unstable();
            let mut last = 0;
            for value in &values {
                let (bucket, extra, _) = buckets.split(*value);
                assert_eq!(buckets.join(bucket, extra).unwrap(), *value);
                assert!(bucket >= last, "buckets ascend with values");
                last = bucket;
            }
            let (coded, bits) = buckets.split_all(&values);
            assert_eq!(buckets.join_all(&coded, &bits).unwrap(), values);
            assert!(buckets.join_all(&coded, &bits[..bits.len() - 1]).is_err());
        }
        assert!(Buckets::new(4).is_err());
    }
}
