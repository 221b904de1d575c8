//! The view that fills the terminal: how far, how much, how fast, for whom, and what happened. Pure: turns a state into
//! a frame.

use std::{collections::VecDeque, time::Duration};

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Borders, Chart, Dataset, Gauge, GraphType, Paragraph, Row, Table},
};

use super::{
    Wishes,
    history::{History, Step},
};
use crate::{
    loadtest::report::progress::{Heading, Progress},
    surface::{cell, words},
};

/// More than any terminal shows; a storm of faults must not grow it.
const LOG_LINES: usize = 100;
const GOOD: Color = Color::Green;
const BAD: Color = Color::Red;
const QUIET: Color = Color::DarkGray;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    None,
    End,
    Abort,
}

pub struct State {
    heading: Heading,
    history: History,
    log: VecDeque<(Duration, String)>,
    phase: String,
    wish: Wish,
}

impl State {
    pub fn new(heading: Heading) -> Self {
        let heading = Heading {
            scenario: cell(&heading.scenario),
            description: cell(&heading.description),
            target: cell(&heading.target),
            ..heading
        };
        Self { heading, history: History::default(), log: VecDeque::new(), phase: String::new(), wish: Wish::None }
    }

    pub fn progress(&mut self, progress: &Progress) {
        if self.phase != progress.phase {
            self.phase = cell(&progress.phase);
            self.said(progress.elapsed, &progress.phase);
        }
        self.history.add(progress);
    }

    pub fn said(&mut self, at: Duration, text: &str) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back((at, cell(text)));
    }

    pub fn wished(&mut self, wishes: &Wishes) {
        self.wish = match (wishes.end.is_cancelled(), wishes.abort.is_cancelled()) {
            (_, true) => Wish::Abort,
            (true, false) => Wish::End,
            (false, false) => Wish::None,
        };
    }

    pub fn draw(&self, frame: &mut Frame) {
        let nothing = Progress::default();
        let now = self.history.last().unwrap_or(&nothing);
        let lower = u16::try_from(now.profiles.len()).unwrap_or(u16::MAX).saturating_add(3).clamp(6, 12);
        let [head, gauge, middle, bottom, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(1),
            Constraint::Min(8),
            Constraint::Length(lower),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let [totals, charts] =
            Layout::horizontal([Constraint::Length(30), Constraint::Min(20)]).spacing(2).areas(middle);
        let [rates, latencies] = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(charts);
        let [profiles, log] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).spacing(2).areas(bottom);
        self.draw_head(frame, head);
        self.draw_gauge(frame, gauge, now);
        self.draw_totals(frame, totals, now);
        self.draw_rates(frame, rates);
        self.draw_latencies(frame, latencies);
        draw_profiles(frame, profiles, now);
        self.draw_log(frame, log);
        self.draw_foot(frame, foot);
    }

    fn draw_head(&self, frame: &mut Frame, area: Rect) {
        let Heading { scenario, description, seed, target } = &self.heading;
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let quiet = Style::new().fg(QUIET);
        let lines = vec![
            Line::from(vec![Span::styled(format!("herald loadtest {scenario}"), bold)]),
            Line::from(vec![Span::styled(format!("seed {seed}, {target}.  {description}"), quiet)]),
        ];
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn draw_gauge(&self, frame: &mut Frame, area: Rect, now: &Progress) {
        let elapsed = now.elapsed.as_secs_f64();
        let (ratio, length) = match now.planned {
            Some(planned) if !planned.is_zero() => {
                let planned = planned.as_secs_f64();
                ((elapsed / planned).clamp(0.0, 1.0), format!("{} of {}", clock(elapsed), clock(planned)))
            }
            _ => (0.0, clock(elapsed)),
        };
        let faults = match now.faults.is_empty() {
            true => String::new(),
            false => format!("   {}", cell(&now.faults.join(", "))),
        };
        let colour = if now.faults.is_empty() { Color::Blue } else { BAD };
        let gauge = Gauge::default()
            .ratio(ratio)
            .label(format!("{}  {length}{faults}", self.phase))
            .gauge_style(Style::new().fg(colour).bg(Color::Reset))
            .use_unicode(true);
        frame.render_widget(gauge, area);
    }

    fn draw_totals(&self, frame: &mut Frame, area: Rect, now: &Progress) {
        let block = titled("Totals");
        let width = usize::from(block.inner(area).width);
        let row = |name: &str, value: String, style: Style| {
            let room = width.saturating_sub(name.len());
            Line::from(vec![
                Span::styled(name.to_owned(), Style::new().fg(QUIET)),
                Span::styled(format!("{value:>room$}"), style),
            ])
        };
        let plain = Style::new();
        let alarmed = |many: u64, colour| if many > 0 { Style::new().fg(colour) } else { Style::new() };
        let mut lines = vec![
            row(
                "acknowledged a second",
                words::decimal(self.history.acknowledged_rate()),
                plain.add_modifier(Modifier::BOLD),
            ),
            row("intended", words::number(now.intended), plain),
            row("sent", words::number(now.sent), plain),
            row("confirmed", words::number(now.confirmed), plain),
            row("acknowledged", words::number(now.acknowledged), plain),
            row("unfinished", words::number(now.unfinished), plain),
            row("failed attempts", words::number(now.failed_attempts), alarmed(now.failed_attempts, Color::Yellow)),
            row("dead letters", words::number(now.dead), alarmed(now.dead, Color::Yellow)),
            row("suspicious", words::number(now.suspicions), alarmed(now.suspicions, BAD)),
        ];
        if let Some(recent) = now.recent {
            let points = [("p50", recent.p50_us), ("p99", recent.p99_us), ("max", recent.max_us)];
            lines.extend(points.map(|(name, us)| row(name, words::time_us(us), plain)));
        }
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    fn draw_rates(&self, frame: &mut Frame, area: Rect) {
        let steps = self.history.newest(columns(area));
        let line = |of: fn(&Step) -> f64| steps.clone().map(|step| (step.at, of(step))).collect::<Vec<_>>();
        let (intended, acknowledged, failed) =
            (line(|step| step.intended), line(|step| step.acknowledged), line(|step| step.failed));
        let most = intended.iter().chain(&acknowledged).chain(&failed).map(|(_, rate)| *rate).fold(1.0, f64::max);
        let top = most * 1.1;
        let labels = [0.0, top / 2.0, top].map(|rate| words::decimal(rate.round())).to_vec();
        let lines =
            [("intended", Color::DarkGray, intended), ("acknowledged", GOOD, acknowledged), ("failed", BAD, failed)];
        let height = Height { bounds: [0.0, top], labels };
        chart(frame, area, "Events and deliveries a second", &lines, window(steps), height);
    }

    fn draw_latencies(&self, frame: &mut Frame, area: Rect) {
        let steps = self.history.newest(columns(area));
        let line = |of: fn(&super::super::progress::Recent) -> u64| {
            let known = steps.clone().filter_map(move |step| step.recent.map(|recent| (step.at, of(&recent))));
            known.map(|(at, us)| (at, (us.max(1) as f64).log10())).collect::<Vec<_>>()
        };
        let (p50, p99) = (line(|recent| recent.p50_us), line(|recent| recent.p99_us));
        let values = || p50.iter().chain(&p99).map(|(_, power)| *power);
        // Whole powers of ten, at least two of them.
        let low = values().fold(f64::INFINITY, f64::min).floor();
        let low = if low.is_finite() { low } else { 2.0 };
        let high = values().fold(low + 2.0, f64::max).ceil();
        let powers: Vec<f64> = (0..=(high - low) as u32).map(|step| low + f64::from(step)).collect();
        let labels = powers.iter().map(|power| words::time(10_f64.powf(*power))).collect();
        let lines = [("p99", Color::Yellow, p99), ("p50", Color::Cyan, p50)];
        let height = Height { bounds: [low, high], labels };
        chart(frame, area, "Latency from the intended time", &lines, window(steps), height);
    }

    fn draw_log(&self, frame: &mut Frame, area: Rect) {
        let block = titled("What happened");
        let rows = usize::from(block.inner(area).height);
        let newest = self.log.iter().skip(self.log.len().saturating_sub(rows));
        let lines: Vec<_> = newest
            .map(|(at, text)| {
                let stamp = Span::styled(format!("{:>7} ", clock(at.as_secs_f64())), Style::new().fg(QUIET));
                Line::from(vec![stamp, Span::raw(text.clone())])
            })
            .collect();
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    fn draw_foot(&self, frame: &mut Frame, area: Rect) {
        let (text, colour) = match self.wish {
            Wish::None => ("q ends the load, judges and reports", QUIET),
            Wish::End => {
                ("ending: what is unfinished is waited for, then judged; q again waits for nothing more", Color::Yellow)
            }
            Wish::Abort => ("stopping at once", BAD),
        };
        frame.render_widget(Paragraph::new(text).style(Style::new().fg(colour)), area);
    }
}

fn draw_profiles(frame: &mut Frame, area: Rect, now: &Progress) {
    let columns = ["", "endpoints", "acknowledged", "failed", "unfinished", "p50", "p99"];
    let head = columns.map(|column| Line::from(column).alignment(Alignment::Right));
    let head = Row::new(head).style(Style::new().fg(QUIET));
    let rows = now.profiles.iter().map(|profile| {
        let counts = [profile.endpoints, profile.acknowledged, profile.failed_attempts, profile.unfinished];
        let mut cells = vec![Line::from(cell(&profile.name))];
        cells.extend(counts.map(|many| Line::from(words::number(many)).alignment(Alignment::Right)));
        let times = profile.recent.map(|recent| [recent.p50_us, recent.p99_us].map(words::time_us));
        let times = times.unwrap_or_else(|| ["-".to_owned(), "-".to_owned()]);
        cells.extend(times.map(|text| Line::from(text).alignment(Alignment::Right)));
        Row::new(cells)
    });
    let widths = [12, 9, 12, 9, 10, 8, 8].map(Constraint::Length);
    frame.render_widget(Table::new(rows, widths).header(head).block(titled("Receivers")), area);
}

fn titled(title: &str) -> Block<'_> {
    Block::default().borders(Borders::TOP).border_style(Style::new().fg(QUIET)).title(format!(" {title} "))
}

/// Two dots of Braille to a column, minus what the labels take.
fn columns(area: Rect) -> usize {
    usize::from(area.width.saturating_sub(10)).max(1) * 2
}

/// A name, its colour, and where it goes.
type Curve<'a> = (&'a str, Color, Vec<(f64, f64)>);

/// The names are in the title, in their colours: a legend would cover the lines.
fn chart(frame: &mut Frame, area: Rect, title: &str, curves: &[Curve<'_>], window: [f64; 2], height: Height) {
    let quiet = Style::new().fg(QUIET);
    let x = Axis::default().bounds(window).labels(window.map(clock)).style(quiet);
    let y = Axis::default().bounds(height.bounds).labels(height.labels).style(quiet);
    let mut names = vec![Span::raw(format!(" {title}: "))];
    names.extend(curves.iter().map(|(name, colour, _)| Span::styled(format!("{name} "), Style::new().fg(*colour))));
    let block = Block::default().borders(Borders::TOP).border_style(quiet).title(Line::from(names));
    let lines = curves.iter().map(|(_, colour, points)| {
        let line = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line);
        line.style(Style::new().fg(*colour)).data(points)
    });
    frame.render_widget(Chart::new(lines.collect()).block(block).x_axis(x).y_axis(y), area);
}

/// The y axis.
struct Height {
    bounds: [f64; 2],
    labels: Vec<String>,
}

/// At least as wide as the first seconds of a run, so that a single point does not look like a line.
fn window<'a>(steps: impl Iterator<Item = &'a Step> + Clone) -> [f64; 2] {
    let from = steps.clone().next().map_or(0.0, |step| step.at);
    [from, steps.last().map_or(0.0, |step| step.at).max(from + 10.0)]
}

/// Whole seconds, because the display is read at a glance.
fn clock(seconds: f64) -> String {
    words::seconds(seconds.floor())
}

#[cfg(test)]
pub(super) mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::loadtest::report::progress::{ProfileProgress, Recent};

    /// A run at 1 000/s with a fault from second 20 to 24.
    pub fn a_run(elapsed: Duration) -> Progress {
        let seconds = elapsed.as_secs_f64();
        let sent = (seconds * 1_000.0) as u64;
        let is_down = (20.0..24.0).contains(&seconds);
        let recent = Recent {
            p50_us: if is_down { 900_000 } else { 1_900 },
            p99_us: if is_down { 3_000_000 } else { 6_400 },
            max_us: 9_000_000,
        };
        let profile = |name: &str, part: u64| ProfileProgress {
            name: name.to_owned(),
            endpoints: 100 / part,
            acknowledged: sent / part,
            failed_attempts: sent / 100,
            unfinished: 3,
            recent: Some(recent),
        };
        Progress {
            phase: "load".to_owned(),
            elapsed,
            planned: Some(Duration::from_secs(60)),
            intended: sent,
            sent,
            confirmed: sent,
            acknowledged: sent * 98 / 100,
            failed_attempts: sent / 100,
            dead: sent / 1_000,
            unfinished: sent / 50,
            suspicions: 0,
            recent: Some(recent),
            profiles: vec![profile("healthy", 1), profile("flaky", 10), profile("hanging", 20)],
            faults: if is_down { vec!["partition-redis".to_owned()] } else { vec![] },
        }
    }

    fn shown(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| state.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn state(ticks: u64) -> State {
        let heading = Heading {
            scenario: "outage".to_owned(),
            description: "Redis goes away.".to_owned(),
            seed: 42,
            target: "2 workers".to_owned(),
        };
        let mut state = State::new(heading);
        (0..ticks).for_each(|tick| state.progress(&a_run(Duration::from_millis(tick * 500))));
        state
    }

    #[test]
    fn the_screen_says_how_far_how_much_how_fast_and_for_whom() {
        let mut state = state(45);
        state.said(Duration::from_secs(20), "partition-redis for 4s");
        let text = shown(&state, 120, 40);
        for said in [
            "herald loadtest outage",
            "seed 42, 2 workers.",
            "22s of 1m   partition-redis",
            "21 560",
            "900ms",
            "acknowledged",
            "100ms",
            "hanging",
            "20s partition-redis for 4s",
            "q ends the load",
        ] {
            assert!(text.contains(said), "{said} is not in:\n{text}");
        }
    }

    #[test]
    fn any_size_and_any_moment_can_be_drawn() {
        for ticks in [0, 1, 2, 5_000] {
            let state = state(ticks);
            for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 90)] {
                shown(&state, width, height);
            }
        }
    }

    #[test]
    fn what_is_shown_is_bounded_and_does_not_steer_the_terminal() {
        let mut state = state(3);
        (0..10_000).for_each(|_| state.said(Duration::ZERO, "\x1b[2Jevil\u{202e}"));
        assert_eq!(state.log.len(), LOG_LINES);
        let text = shown(&state, 120, 40);
        assert!(text.contains(" [2Jevil") && !text.contains('\x1b') && !text.contains('\u{202e}'));
    }

    #[test]
    fn a_wish_is_answered() {
        let (mut state, wishes) = (state(3), Wishes::default());
        wishes.ask();
        state.wished(&wishes);
        assert!(shown(&state, 120, 40).contains("q again waits for nothing more"));
        wishes.ask();
        state.wished(&wishes);
        assert!(shown(&state, 120, 40).contains("stopping at once"));
    }
}
