//! Conversions between f32 and the 16-bit floats, and rounding, without a float library.

/// Rounds to the nearest integer, halves to even. Exact for `|x| < 2^22`.
///
/// Adding 1.5 * 2^23 pushes the fraction out of the mantissa, and IEEE addition rounds it there.
#[inline(always)]
#[must_use]
pub fn round_half_even(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The f32 that an f16 bit pattern stands for. Exact.
#[inline]
#[must_use]
pub fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    let bits = if magnitude >= 0x7c00 {
        0x7f80_0000 | (magnitude << 13) // infinity or NaN
    } else if magnitude >= 0x0400 {
        (magnitude << 13) + (112 << 23) // normal: rebias 15 to 127
    } else {
        (magnitude as f32 * 5.960_464_5e-8).to_bits() // subnormal: magnitude * 2^-24
    };
    f32::from_bits(sign | bits)
}

/// The f16 nearest to `x`, halves to even; overflow gives infinity.
#[inline]
#[must_use]
pub fn f32_to_f16(x: f32) -> u16 {
    let sign = ((x.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x477f_f000 {
        0x7c00 // 65520 and above
    } else if magnitude >= 0x3880_0000 {
        let odd = (magnitude >> 13) & 1;
        ((magnitude - (112 << 23) + 0x0fff + odd) >> 13) as u16
    } else {
        // Below 2^-14 the result is a multiple of 2^-24: let addition round to that grid.
        (f32::from_bits(magnitude) + 0.5)
            .to_bits()
            .wrapping_sub(0.5f32.to_bits()) as u16
    };
    sign | half
}

/// The f32 that a bf16 bit pattern stands for. Exact.
#[inline]
#[must_use]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bf16 nearest to `x`, halves to even.
#[inline]
#[must_use]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) as u16) | 0x0040;
    }
    let odd = (bits >> 16) & 1;
    (bits.wrapping_add(0x7fff + odd) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_the_round_trip() {
        for half in 0..=u16::MAX {
            let wide = f16_to_f32(half);
            if wide.is_nan() {
                assert_eq!(half & 0x7c00, 0x7c00);
            } else {
                assert_eq!(f32_to_f16(wide), half, "{half:#06x} = {wide}");
            }
        }
    }

    /// Between two neighbouring halves the nearer wins, and the even one at the exact middle.
    #[test]
    fn f32_to_f16_rounds_to_nearest_even() {
        for half in 0..0x7bffu16 {
            let (low, high) = (f64::from(f16_to_f32(half)), f64::from(f16_to_f32(half + 1)));
            let middle = ((low + high) / 2.0) as f32;
            let even = if half & 1 == 0 { half } else { half + 1 };
            assert_eq!(f32_to_f16(middle), even, "{middle}");
            assert_eq!(f32_to_f16(-middle), even | 0x8000, "-{middle}");
            assert_eq!(f32_to_f16(middle.next_down()), half);
            assert_eq!(f32_to_f16(middle.next_up()), half + 1);
        }
        assert_eq!(f32_to_f16(65519.9), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert!(f16_to_f32(f32_to_f16(f32::NAN)).is_nan());
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        assert_eq!(f32_to_bf16(1.0), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
        for bits in [0u16, 0x8000, 0x7f80, 0xff80, 0x0001] {
            assert_eq!(f32_to_bf16(bf16_to_f32(bits)), bits);
        }
    }

    #[test]
    fn rounding_matches_the_standard_library() {
        for i in -4_000_000i32..4_000_000 {
            let x = i as f32 * 0.25;
            assert_eq!(round_half_even(x), x.round_ties_even(), "{x}");
        }
    }
}
