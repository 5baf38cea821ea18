//! `dog volume tree`: which volumes, snapshots and clones build on which.
//!
//! What follows a layer in its own column lies on it, and so does what branches off below it:
//!
//! ```text
//! * golden@v1
//! |-* web@monday
//! | * web
//! * golden
//! ```
//!
//! So a thousand snapshots in a row take no more width than one; only branches are indented.

use super::{Context, Failure, name::VolumeName, print};
use crate::size::Size;
use engine::admin::{AdminReply, AdminRequest, LayerKind, LayerReport};
use proto::LayerId;
use std::collections::{BTreeMap, BTreeSet};

/// Runs the command.
pub fn run(context: &Context, name: Option<VolumeName>) -> Result<(), Failure> {
    let layers = layers(context, name.map(|name| name.0))?;
    if context.json { print::json(&layers) } else { print::text(&tabulate(&layers)) }
}

/// The layers that belong to a volume and what it builds on, or all; each comes after what it lies
/// on.
pub fn layers(context: &Context, name: Option<String>) -> Result<Vec<LayerReport>, Failure> {
    match context.ask(&AdminRequest::LayerList { name })? {
        AdminReply::Layers(layers) => Ok(layers),
        _ => Err(Failure::mismatch()),
    }
}

fn tabulate(layers: &[LayerReport]) -> String {
    let columns =
        [("LAYER", false), ("KIND", false), ("SIZE", true), ("USED", true), ("STATE", false)];
    let rows = Tree::new(layers).lines().into_iter().map(|line| match line {
        None => vec![String::new(); columns.len()],
        Some((branch, layer)) => vec![
            format!("{branch}{}", label(layer)),
            kind(layer.kind).to_string(),
            layer.bytes.map_or_else(|| "-".to_string(), |bytes| Size(bytes).to_string()),
            print::at_least(layer.used_bytes, &layer.unknown_nodes),
            state(layer).to_string(),
        ],
    });
    print::table(&columns, rows.collect())
}

fn kind(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Head => "volume",
        LayerKind::Snapshot => "snapshot",
        LayerKind::Hidden => "hidden",
        LayerKind::Source => "source",
    }
}

fn state(layer: &LayerReport) -> &'static str {
    match (layer.in_trash, layer.sealing) {
        (true, _) => "in trash",
        (false, true) => "being sealed",
        (false, false) => "ok",
    }
}

fn label(layer: &LayerReport) -> String {
    match (&layer.name, &layer.volume) {
        (Some(name), _) => name.clone(),
        (None, Some(volume)) => format!("({volume}, layer {})", layer.layer),
        (None, None) => format!("(layer {})", layer.layer),
    }
}

/// The layers and what lies on each.
struct Tree<'a> {
    roots: Vec<&'a LayerReport>,
    children: BTreeMap<LayerId, Vec<&'a LayerReport>>,
}

/// One line: what is drawn before the layer's name, and the layer. Nothing: an empty line.
type Line<'a> = Option<(String, &'a LayerReport)>;

impl<'a> Tree<'a> {
    /// From layers of which each comes after what it lies on.
    fn new(layers: &'a [LayerReport]) -> Tree<'a> {
        let mut tree = Tree { roots: Vec::new(), children: BTreeMap::new() };
        let mut known = BTreeSet::new();
        for layer in layers {
            match layer.parent.filter(|parent| known.contains(parent)) {
                Some(parent) => tree.children.entry(parent).or_default().push(layer),
                None => tree.roots.push(layer),
            }
            known.insert(layer.layer);
        }
        // Children come after their parents, so backwards each layer's own end is known before it:
        // a layer goes on in its column with the child that leads to the head of its volume, or
        // else with one that is at least of its volume.
        let mut leads_to_head = BTreeSet::new();
        for layer in layers.iter().rev() {
            let children = tree.children.entry(layer.layer).or_default();
            let is_own = |child: &LayerReport| child.volume == layer.volume;
            let leads = |child: &LayerReport| leads_to_head.contains(&child.layer);
            let main = children.iter().position(|child| is_own(child) && leads(child));
            if main.is_some() || layer.kind == LayerKind::Head {
                leads_to_head.insert(layer.layer);
            }
            if let Some(main) = main.or(children.iter().rposition(|child| is_own(child))) {
                children[main..].rotate_left(1);
            }
        }
        tree
    }

    fn lines(&self) -> Vec<Line<'a>> {
        let mut lines = Vec::new();
        for root in &self.roots {
            if !lines.is_empty() {
                lines.push(None);
            }
            self.draw("", "", root, &mut lines);
        }
        lines
    }

    /// Draws a column: the layer, what branches off, and on with what goes on in the column.
    /// `first` stands before the first layer, `rest` before the others.
    fn draw(&self, first: &str, rest: &str, top: &'a LayerReport, lines: &mut Vec<Line<'a>>) {
        let (mut layer, mut before) = (top, first);
        loop {
            lines.push(Some((format!("{before}* "), layer)));
            before = rest;
            let Some((main, branches)) = self.children[&layer.layer].split_last() else { return };
            for branch in branches {
                self.draw(&format!("{rest}|-"), &format!("{rest}| "), branch, lines);
            }
            layer = main;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: u64, parent: u64, volume: &str, tag: &str) -> LayerReport {
        let kind = match tag {
            "" => LayerKind::Head,
            "?" => LayerKind::Hidden,
            _ => LayerKind::Snapshot,
        };
        LayerReport {
            layer: LayerId(id),
            parent: (parent > 0).then_some(LayerId(parent)),
            kind,
            name: match kind {
                LayerKind::Head => Some(volume.to_string()),
                LayerKind::Snapshot => Some(format!("{volume}@{tag}")),
                LayerKind::Hidden | LayerKind::Source => None,
            },
            volume: (!volume.is_empty()).then(|| volume.to_string()),
            bytes: (kind != LayerKind::Hidden).then_some(1 << 30),
            used_bytes: id << 20,
            sealing: false,
            in_trash: false,
            unknown_nodes: Vec::new(),
        }
    }

    fn drawn(layers: &[LayerReport]) -> Vec<String> {
        let lines = Tree::new(layers).lines();
        let text = |line: Line<'_>| match line {
            None => String::new(),
            Some((branch, layer)) => format!("{branch}{}", label(layer)),
        };
        lines.into_iter().map(text).collect()
    }

    #[test]
    fn rows_in_a_line_take_no_width_and_branches_do() {
        let layers = [
            layer(1, 0, "golden", "v1"),
            layer(2, 1, "web", "monday"),
            layer(3, 1, "golden", "v2"),
            layer(4, 2, "web", ""),
            layer(5, 3, "golden", ""),
            layer(6, 3, "db", ""),
            layer(7, 2, "test", ""),
        ];
        let expected = [
            "* golden@v1",
            "|-* web@monday",
            "| |-* test",
            "| * web",
            "* golden@v2",
            "|-* db",
            "* golden",
        ];
        assert_eq!(drawn(&layers), expected);
    }

    #[test]
    fn after_a_rollback_the_column_leads_to_the_volume() {
        // Back to a from b: what b had is a branch now.
        let layers = [
            layer(1, 0, "v", "a"),
            layer(2, 1, "v", "b"),
            layer(3, 1, "v", ""),
            layer(4, 0, "w", ""),
        ];
        assert_eq!(drawn(&layers), ["* v@a", "|-* v@b", "* v", "", "* w"]);
        // A branch that leads to no volume goes on with its own snapshots, not with a clone.
        let layers = [
            layer(1, 0, "v", "a"),
            layer(2, 1, "v", "b"),
            layer(3, 2, "v", "c"),
            layer(4, 2, "w", ""),
            layer(5, 1, "v", ""),
        ];
        assert_eq!(drawn(&layers), ["* v@a", "|-* v@b", "| |-* w", "| * v@c", "* v"]);
        let layers = [layer(1, 0, "v", "a"), layer(2, 1, "v", ""), layer(3, 1, "v", "b")];
        assert_eq!(drawn(&layers), ["* v@a", "|-* v@b", "* v"]);
    }

    #[test]
    fn hidden_layers_are_shown_with_what_is_known_of_them() {
        let layers = [
            layer(1, 0, "", "?"),
            layer(2, 1, "a", ""),
            layer(3, 1, "b", "?"),
            layer(4, 3, "b", ""),
            layer(5, 3, "b", "x"),
        ];
        let expected = ["* (layer 1)", "|-* a", "* (b, layer 3)", "|-* b@x", "* b"];
        assert_eq!(drawn(&layers), expected);
        let mut layers = layers;
        layers[1].in_trash = true;
        let printed = tabulate(&layers[..2]);
        let expected = "\
LAYER        KIND       SIZE     USED  STATE
* (layer 1)  hidden        -  1.0 MiB  ok
* a          volume  1.0 GiB  2.0 MiB  in trash
";
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_thousand_snapshots_in_a_row_are_drawn_in_one_column() {
        let mut layers: Vec<_> = (1..=1000).map(|id| layer(id, id - 1, "v", "t")).collect();
        layers.push(layer(1001, 1000, "v", ""));
        let lines = drawn(&layers);
        assert_eq!(lines.len(), 1001);
        assert!(lines.iter().all(|line| line.starts_with("* v")), "{lines:?}");
    }
}
