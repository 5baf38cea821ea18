//! The layers of one lineage and which of them lies below which.

use proto::LayerId;
use std::collections::BTreeMap;

/// A layer that is there.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// 0: none. May be a layer that is not there: then nothing of it is on this disk.
    parent: LayerId,
    /// The layers above it have numbers from `enter` to before `end`, its own being `enter`.
    enter: u32,
    end: u32,
    /// How many layers lie directly above it, and the last of them.
    children: u32,
    child: LayerId,
}

/// See the module's description. A layer's number is higher than its parent's.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerTree {
    layers: BTreeMap<LayerId, Node>,
}

impl LayerTree {
    /// No layers.
    pub(crate) const fn new() -> LayerTree {
        LayerTree { layers: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    pub(crate) fn contains(&self, layer: LayerId) -> bool {
        self.layers.contains_key(&layer)
    }

    /// The parent of a layer that is there; 0: none.
    pub(crate) fn parent(&self, layer: LayerId) -> Option<LayerId> {
        self.layers.get(&layer).map(|node| node.parent)
    }

    /// How many layers lie directly above a layer, and the last of them.
    pub(crate) fn children(&self, layer: LayerId) -> (u32, LayerId) {
        self.layers.get(&layer).map_or((0, LayerId(0)), |node| (node.children, node.child))
    }

    /// Whether any layer names this one as its parent, be it there or not.
    pub(crate) fn is_named(&self, layer: LayerId) -> bool {
        self.layers.values().any(|node| node.parent == layer)
    }

    /// The layers and their parents, in layer order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (LayerId, LayerId)> {
        self.layers.iter().map(|(&layer, node)| (layer, node.parent))
    }

    /// Whether `lower` is `upper` or below it: what `lower` has, `upper` may show.
    pub(crate) fn is_below(&self, lower: LayerId, upper: LayerId) -> bool {
        if lower == upper {
            return true;
        }
        let (Some(lower), Some(upper)) = (self.layers.get(&lower), self.layers.get(&upper)) else {
            return false;
        };
        (lower.enter..lower.end).contains(&upper.enter)
    }

    /// Adds a layer that is not there.
    pub(crate) fn insert(&mut self, layer: LayerId, parent: LayerId) {
        assert!(parent < layer, "a layer's number is higher than its parent's");
        let node = Node { parent, enter: 0, end: 0, children: 0, child: LayerId(0) };
        let before = self.layers.insert(layer, node);
        assert!(before.is_none(), "a layer is added twice");
        self.number();
    }

    /// Takes a layer out; those above it get its parent.
    pub(crate) fn remove(&mut self, layer: LayerId) {
        let Some(gone) = self.layers.remove(&layer) else { return };
        self.raise(layer, gone.parent);
    }

    /// What named a layer as its parent names another.
    pub(crate) fn raise(&mut self, from: LayerId, to: LayerId) {
        for node in self.layers.values_mut().filter(|node| node.parent == from) {
            node.parent = to;
        }
        self.number();
    }

    /// Numbers all layers anew. Those above a layer come after it in layer order.
    fn number(&mut self) {
        let mut sizes: BTreeMap<LayerId, (u32, u32, LayerId)> = BTreeMap::new();
        for (&layer, node) in self.layers.iter().rev() {
            let (above, ..) = *sizes.entry(layer).or_default();
            let parent = sizes.entry(node.parent).or_default();
            let last = parent.2.max(layer);
            *parent = (parent.0 + above + 1, parent.1 + 1, last);
        }
        // Where the next child of each layer begins; those without a parent here follow each other.
        let mut places: BTreeMap<LayerId, u32> = BTreeMap::new();
        let mut next_root = 0;
        for (&layer, node) in &mut self.layers {
            let (above, children, child) = sizes[&layer];
            let place = places.get_mut(&node.parent).unwrap_or(&mut next_root);
            node.enter = *place;
            node.end = *place + above + 1;
            (node.children, node.child) = (children, child);
            *place = node.end;
            let inside = node.enter + 1;
            places.insert(layer, inside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By following parents.
    fn is_below_slowly(tree: &LayerTree, lower: u64, upper: u64) -> bool {
        let mut at = LayerId(upper);
        while at.0 != lower {
            match tree.parent(at) {
                Some(parent) => at = parent,
                None => return false,
            }
        }
        tree.contains(LayerId(lower)) || lower == upper
    }

    fn check(tree: &LayerTree) {
        for lower in 1..9 {
            for upper in 1..9 {
                let found = tree.is_below(LayerId(lower), LayerId(upper));
                assert_eq!(found, is_below_slowly(tree, lower, upper), "{lower} below {upper}");
            }
            let children: Vec<LayerId> =
                tree.iter().filter(|(_, p)| p.0 == lower).map(|(layer, _)| layer).collect();
            if tree.contains(LayerId(lower)) {
                let (count, last) = tree.children(LayerId(lower));
                assert_eq!(count as usize, children.len());
                assert_eq!(last, children.last().copied().unwrap_or_default());
            }
        }
    }

    #[test]
    fn layers_lie_below_those_that_descend_from_them_and_no_others() {
        let mut tree = LayerTree::default();
        // 4 and 7 branch off 2; 5's parent is not there.
        for (layer, parent) in [(1, 0), (2, 1), (4, 2), (7, 2), (6, 4), (8, 7), (5, 3)] {
            tree.insert(LayerId(layer), LayerId(parent));
            check(&tree);
        }
        for gone in [4, 1, 2, 8, 5] {
            tree.remove(LayerId(gone));
            check(&tree);
        }
        assert_eq!(tree.parent(LayerId(6)), Some(LayerId(0)));
    }
}
