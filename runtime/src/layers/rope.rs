//! Rotary position embedding (arXiv 2104.09864).

use bitnet_formats::{RopePairing, VectorView};

use crate::math::sin_cos;

/// Cosines, then sines, of `position * inv_freq[i]`; `angles` is twice as long as `inv_freq`.
pub(crate) fn angles(position: usize, inv_freq: &VectorView<'_>, angles: &mut [f32]) {
    let (cosines, sines) = angles.split_at_mut(inv_freq.len());
    for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(inv_freq.iter()) {
        (*sin, *cos) = sin_cos(position as f32 * frequency);
    }
}

/// Rotates a head in place.
pub(crate) fn rotate(head: &mut [f32], angles: &[f32], pairing: RopePairing) {
    let half = head.len() / 2;
    let (cosines, sines) = angles.split_at(half);
    for (i, (cos, sin)) in cosines.iter().zip(sines).enumerate() {
        let (a, b) = match pairing {
            RopePairing::HalfRotation => (i, i + half),
            RopePairing::Interleaved => (2 * i, 2 * i + 1),
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * cos - y * sin;
        head[b] = y * cos + x * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_the_angle_of_their_position() {
        let inv_freq: Vec<u8> = [1.0f32, 0.5].iter().flat_map(|f| f.to_le_bytes()).collect();
        let mut turn = [0.0; 4];
        angles(3, &VectorView::new(&inv_freq), &mut turn);
        let expected = [3.0f32.cos(), 1.5f32.cos(), 3.0f32.sin(), 1.5f32.sin()];
        turn.iter()
            .zip(expected)
            .for_each(|(a, b)| assert!((a - b).abs() < 1e-6));

        let mut half = [1.0, 1.0, 0.0, 0.0];
        rotate(&mut half, &turn, RopePairing::HalfRotation);
        assert_eq!(half, [turn[0], turn[1], turn[2], turn[3]]);
        let mut interleaved = [1.0, 0.0, 1.0, 0.0];
        rotate(&mut interleaved, &turn, RopePairing::Interleaved);
        assert_eq!(interleaved, [turn[0], turn[2], turn[1], turn[3]]);
    }
}
