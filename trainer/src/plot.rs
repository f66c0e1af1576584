//! The loss curve as an SVG, written by hand.

use std::fmt::Write;

use crate::metrics::Record;

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 500.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 60.0;
/// Most points of the training curve; longer runs are averaged in groups.
const POINTS: usize = 300;
const TRAIN: &str = "#9db7d5";
const VALIDATION: &str = "#c2410c";

/// A point in data units: step, loss.
type Point = (f64, f64);

/// From data units to the page.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn new(train: &[Point], validation: &[Point]) -> Self {
        let points = || train.iter().chain(validation);
        let low = points().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let high = points().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let last = points().map(|p| p.0).fold(1.0, f64::max);
        let margin = ((high - low) * 0.05).max(0.05);
        Self {
            x: (0.0, last),
            y: ((low - margin).max(0.0), high + margin),
        }
    }

    fn place(&self, (step, loss): Point) -> Point {
        let across = (step - self.x.0) / (self.x.1 - self.x.0);
        let up = (loss - self.y.0) / (self.y.1 - self.y.0);
        (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )
    }
}

/// The training and validation curves of a run. `title` is text, not markup.
#[must_use]
pub fn loss_svg(records: &[Record], title: &str) -> String {
    let train = averaged(records);
    let validation: Vec<Point> = records
        .iter()
        .filter_map(|r| Some((r.step as f64, r.val_loss?)))
        .collect();
    if train.is_empty() {
        return frame(title, "");
    }
    let axes = Axes::new(&train, &validation);
    let mut body = grid(&axes);
    body += &curve(&axes, &train, TRAIN, 2.0);
    body += &curve(&axes, &validation, VALIDATION, 2.5);
    for point in &validation {
        let (x, y) = axes.place(*point);
        let _ = writeln!(
            body,
            "<circle cx='{x:.1}' cy='{y:.1}' r='3.5' fill='{VALIDATION}'/>"
        );
    }
    body += &legend(records);
    frame(title, &body)
}

/// Training losses, at most [`POINTS`], each the mean of its group at the group's last step.
fn averaged(records: &[Record]) -> Vec<Point> {
    // A step with nothing to predict has no loss.
    let has_loss = |r: &&Record| !r.skipped || r.loss > 0.0;
    let records: Vec<&Record> = records.iter().filter(has_loss).collect();
    let group = records.len().div_ceil(POINTS).max(1);
    let mean = |group: &[&Record]| {
        let sum: f64 = group.iter().map(|r| r.loss).sum();
        (group[group.len() - 1].step as f64, sum / group.len() as f64)
    };
    records.chunks(group).map(mean).collect()
}

fn frame(title: &str, body: &str) -> String {
    let title = title
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' \
         width='{WIDTH}' height='{HEIGHT}' font-family='Helvetica, Arial, sans-serif' \
         font-size='13' fill='#333'>\n<rect width='100%' height='100%' fill='white'/>\n\
         <text x='{LEFT}' y='30' font-size='17' font-weight='bold'>{title}</text>\n{body}</svg>\n"
    )
}

fn grid(axes: &Axes) -> String {
    let mut out = String::new();
    let (left, right, bottom) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
    for value in ticks(axes.y, 6) {
        let (_, y) = axes.place((0.0, value));
        let _ = writeln!(
            out,
            "<line x1='{left}' x2='{right}' y1='{y:.1}' y2='{y:.1}' stroke='#e5e7eb'/>\
             <text x='{}' y='{:.1}' text-anchor='end'>{}</text>",
            left - 8.0,
            y + 4.5,
            tidy(value)
        );
    }
    for value in ticks(axes.x, 8) {
        let (x, _) = axes.place((value, axes.y.0));
        let _ = writeln!(
            out,
            "<line x1='{x:.1}' x2='{x:.1}' y1='{bottom}' y2='{}' stroke='#333'/>\
             <text x='{x:.1}' y='{}' text-anchor='middle'>{}</text>",
            bottom + 5.0,
            bottom + 20.0,
            tidy(value)
        );
    }
    let (middle_x, middle_y) = ((left + right) / 2.0, (TOP + bottom) / 2.0);
    let _ = writeln!(
        out,
        "<path d='M{left} {TOP}V{bottom}H{right}' fill='none' stroke='#333'/>\n\
         <text x='{middle_x}' y='{}' text-anchor='middle'>step</text>\n\
         <text transform='translate(20 {middle_y}) rotate(-90)' text-anchor='middle'>\
         loss (nats per token)</text>",
        HEIGHT - 16.0
    );
    out
}

fn curve(axes: &Axes, points: &[Point], colour: &str, width: f64) -> String {
    let place = |point: &Point| {
        let (x, y) = axes.place(*point);
        format!("{x:.1},{y:.1}")
    };
    let path: Vec<String> = points.iter().map(place).collect();
    format!(
        "<polyline fill='none' stroke='{colour}' stroke-width='{width}' \
         stroke-linejoin='round' points='{}'/>\n",
        path.join(" ")
    )
}

fn legend(records: &[Record]) -> String {
    let validation = records.iter().rev().find_map(|r| {
        let bits = r.val_bits_per_byte?;
        Some(format!(
            "validation {:.3} ({bits:.3} bits per byte)",
            r.val_loss?
        ))
    });
    let train = records.last().map(|r| format!("training {:.3}", r.loss));
    let mut out = String::new();
    let rows = [(TRAIN, train), (VALIDATION, validation)];
    for (i, (colour, text)) in rows.into_iter().enumerate() {
        let (Some(text), y) = (text, TOP + 14.0 + 22.0 * i as f64) else {
            continue;
        };
        let x = WIDTH - RIGHT - 290.0;
        let _ = writeln!(
            out,
            "<line x1='{x}' x2='{}' y1='{y}' y2='{y}' stroke='{colour}' stroke-width='3'/>\
             <text x='{}' y='{}'>{text}</text>",
            x + 26.0,
            x + 34.0,
            y + 4.5
        );
    }
    out
}

/// Round values within a range, about `count` of them.
fn ticks((low, high): (f64, f64), count: usize) -> Vec<f64> {
    let raw = (high - low) / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let unit = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
    let step = unit.into_iter().find(|s| *s >= raw).unwrap_or(unit[3]);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// At most two decimals, and none that say nothing.
fn tidy(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64) -> Vec<Record> {
        let record = |step: u64| Record {
            step,
            loss: 2.0 + 5.0 / step as f64,
            val_loss: step.is_multiple_of(100).then_some(2.1),
            lr: 1e-3,
            grad_norm: 1.0,
            tokens_per_s: 1.0,
            val_bits_per_byte: step.is_multiple_of(100).then_some(1.9),
            ..Record::default()
        };
        (1..=steps).map(record).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            ticks((0.0, 600.0), 8),
            [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
        );
        assert_eq!(ticks((1.9, 2.6), 6).len(), 4);
        assert_eq!(tidy(2.50), "2.5");
        assert_eq!(tidy(300.0), "300");
    }

    #[test]
    fn both_curves_lie_inside_the_frame() {
        let svg = loss_svg(&run(1000), "a <b> & c");
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 10);
        assert!(svg.contains("a &lt;b&gt; &amp; c"));
        assert!(svg.contains("1.900 bits per byte"));
        let points = svg.split("points='").skip(1);
        for pair in points.flat_map(|p| p.split('\'').next().unwrap().split(' ')) {
            let (x, y) = pair.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{pair}");
            assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{pair}");
        }
    }

    #[test]
    fn short_runs_have_a_picture_too() {
        assert!(loss_svg(&[], "empty").ends_with("</svg>\n"));
        assert!(loss_svg(&run(1), "one").contains("<polyline"));
        assert!(averaged(&run(1000)).len() <= POINTS);
    }
}
