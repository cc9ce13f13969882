// Where each node of the tree is drawn: text runs to the right, so a prefix lies left of what follows it, as high as
// all of that together.

const ROW = 28;
const GAP = 3;
const MIN_WIDTH = 46;
const LEAF_WIDTH = 96; // whatever follows nothing has room for some words

/**
 * @param nodes parents first
 * @param numRoots how many nodes there are below the root, drawn or not
 * @param width of the space there is
 * @returns {boxes, width, height}: a box {node, x, y, w, h, depth} each, and {more, of, ...} for what is left out
 */
export function layout(nodes, numRoots, width) {
  const children = new Map([[0, []]]);
  for (const node of nodes) {
    children.set(node.id, []);
    children.get(node.parent)?.push(node);
  }
  // Not in order of importance, which changes: a node keeps its place.
  for (const below of children.values()) below.sort((a, b) => a.id - b.id);
  const scale = scaleFor(children, width);
  const boxes = [];

  /** Gives the rows that the nodes below `id` take. */
  function place(id, numChildren, x, row, depth) {
    const below = children.get(id) ?? [];
    let rows = 0;
    for (const node of below) {
      const w = widthOf(node, children, scale);
      const box = { node, x, y: (row + rows) * ROW, w, h: 0, depth };
      boxes.push(box);
      const taken = Math.max(1, place(node.id, node.num_children, x + w + GAP, row + rows, depth + 1));
      box.h = taken * ROW - GAP;
      rows += taken;
    }
    const more = numChildren - below.filter((node) => !node.isGone).length;
    // Where nothing is shown below a node, "… 1 more" beside it says that it goes on.
    if (more > 0) {
      boxes.push({ more, of: id, x, y: (row + rows) * ROW, w: LEAF_WIDTH, h: ROW - GAP, depth });
      rows += 1;
    }
    return rows;
  }

  const rows = place(0, numRoots, 0, 0, 1);
  return { boxes, height: rows * ROW, width: Math.max(0, ...boxes.map((box) => box.x + box.w)) };
}

/** Twice the tokens are one unit more: a page is seen beside a book. */
const units = (node) => 1 + Math.log2(1 + node.num_tokens / 16);

const isLeaf = (node, children) => !children.get(node.id)?.length && !node.num_children;

function widthOf(node, children, scale) {
  return Math.max(isLeaf(node, children) ? LEAF_WIDTH : MIN_WIDTH, Math.round(scale * units(node)));
}

/** Pixels for a unit, so that the longest path fills the space; when there are many nodes on it, it is scrolled. */
function scaleFor(children, width) {
  let longest = 0;
  function walk(id, sum, depth) {
    longest = Math.max(longest, sum / Math.max(0.2, 1 - (depth * GAP) / width));
    for (const node of children.get(id) ?? []) walk(node.id, sum + units(node), depth + 1);
  }
  walk(0, 0, 0);
  return longest ? Math.min(150, width / longest) : 1;
}
