//! Plots as SVG: bars on a logarithmic scale, readable on a light and on a dark page.

use std::fmt::Write;

use crate::report::rounded;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 90.0;
const ROW: f64 = 22.0;
const TOP: f64 = 52.0;

/// One bar of a plot of ratios.
pub struct Bar<'a> {
    /// What stands beside it.
    pub name: &'a str,
    /// The worst round.
    pub low: f64,
    /// The median.
    pub value: f64,
    /// The best round.
    pub high: f64,
    /// What is to be reached.
    pub mark: Option<f64>,
}

/// A logarithmic axis.
struct Axis {
    from: f64,
    until: f64,
}

impl Axis {
    /// An axis over whole powers of ten that holds all values.
    fn over(values: impl Iterator<Item = f64> + Clone) -> Self {
        let finite = values.filter(|value| value.is_finite() && *value > 0.0);
        let (from, until) = (finite.clone().fold(1.0, f64::min), finite.fold(1.0, f64::max));
        Self { from: from.log10().floor(), until: until.log10().ceil().max(from.log10().floor() + 1.0) }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value.max(1e-12).log10() - self.from) / (self.until - self.from);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Lines at the powers of ten, with their numbers.
    fn draw(&self, svg: &mut String, bottom: f64, label: impl Fn(f64) -> String) {
        let mut power = self.from;
        while power <= self.until {
            let value = 10_f64.powf(power);
            let x = self.x(value);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" class=\"grid\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" class=\"tick\">{}</text>",
                TOP - 4.0,
                TOP - 10.0,
                label(value)
            );
            power += 1.0;
        }
    }
}

/// How many times less one takes than the other: the bar is the median, the line the range of the rounds, the dot what is to be
/// reached.
pub fn ratios(bars: &[Bar<'_>]) -> String {
    let axis = Axis::over(bars.iter().flat_map(|bar| [bar.low, bar.high, bar.mark.unwrap_or(1.0)]));
    let bottom = TOP + ROW * bars.len() as f64;
    let mut svg = open("How many times less Gregor takes than Apache Kafka (dot: to reach)", bottom);
    axis.draw(
        &mut svg,
        bottom,
        |value| if value < 1.0 { format!("{}x more", 1.0 / value) } else { format!("1/{value}") },
    );
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let (one, end) = (axis.x(1.0), axis.x(bar.value));
        let class = if bar.value < 1.0 { "worse" } else { "ours" };
        name(&mut svg, bar.name, y);
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" class=\"{class}\"/>\
             <line x1=\"{:.1}\" y1=\"{m:.1}\" x2=\"{:.1}\" y2=\"{m:.1}\" class=\"range\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" class=\"value\">1/{}</text>",
            one.min(end),
            y + 4.0,
            (end - one).abs().max(1.0),
            axis.x(bar.low),
            axis.x(bar.high),
            axis.x(bar.high.max(bar.mark.unwrap_or(0.0))) + 8.0,
            y + 14.0,
            rounded(bar.value),
            m = y + 10.0,
        );
        if let Some(mark) = bar.mark {
            let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" class=\"mark\"/>", axis.x(mark), y + 10.0);
        }
    }
    svg + "</svg>\n"
}

/// Pairs of times in milliseconds, ours above Apache's.
pub fn pairs(rows: &[(&str, f64, f64)]) -> String {
    let axis = Axis::over(rows.iter().flat_map(|(_, ours, theirs)| [*ours, *theirs]));
    let bottom = TOP + ROW * rows.len() as f64;
    let mut svg = open("Milliseconds: Gregor above, Apache Kafka below; shorter is better", bottom);
    axis.draw(&mut svg, bottom, |value| format!("{value} ms"));
    for (row, (text, ours, theirs)) in rows.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        name(&mut svg, text, y);
        for (value, class, offset) in [(ours, "ours", 2.0), (theirs, "theirs", 10.0)] {
            let end = axis.x(*value);
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"7\" class=\"{class}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" class=\"small\">{}</text>",
                y + offset,
                (end - LEFT).max(1.0),
                end + 5.0,
                y + offset + 7.0,
                rounded(*value)
            );
        }
    }
    svg + "</svg>\n"
}

fn open(title: &str, bottom: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>text{{font-family:system-ui,sans-serif;font-size:12px;fill:#1f2328}}.title{{font-size:14px;font-weight:600}}\
         .tick{{text-anchor:middle;font-size:11px;fill:#656d76}}.value{{font-weight:600}}.small{{font-size:9px}}\
         .grid{{stroke:#d0d7de}}.ours{{fill:#1f883d}}.theirs{{fill:#8c959f}}.worse{{fill:#cf222e}}\
         .range{{stroke:#1f2328;stroke-width:1.5}}.mark{{fill:#fff;stroke:#1f2328;stroke-width:1.5}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"12\" y=\"22\" class=\"title\">{title}</text>\n",
        bottom + 14.0
    )
}

fn name(svg: &mut String, text: &str, y: f64) {
    let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 10.0, y + 14.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_grows_with_the_ratio_and_a_worse_one_is_marked() {
        let bar = |name, value| Bar { name, low: value / 2.0, value, high: value * 2.0, mark: Some(3.0) };
        let svg = ratios(&[bar("small", 2.0), bar("large", 90.0), bar("lost", 0.5)]);
        let widths: Vec<f64> = svg
            .split("<rect ")
            .skip(2)
            .map(|rect| rect.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!(widths[1] > widths[0], "{widths:?}");
        assert_eq!((svg.matches("class=\"worse\"").count(), svg.matches("<circle").count()), (1, 3));
        assert!(pairs(&[("p99", 0.5, 5.0)]).contains(">0.50</text>"));
    }
}
