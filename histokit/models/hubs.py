"""MERGE's graph of a slide: neighbors, and hubs that link spots far apart."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import torch
import torch.nn.functional as F

from histokit.models.places import nearest_spots

NEIGHBORS = 8
ROUNDS = 100  # of k-means at most


@dataclasses.dataclass(frozen=True)
class Graph:
    """Directed edges of a slide of N spots, each spot's edge to itself among them.

    Attributes:
        source: (E,) int64.
        target: (E,) int64, ascending.
        offsets: (N + 1,) int64, where the edges into each spot begin.
    """

    source: torch.Tensor
    target: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, source: torch.Tensor, target: torch.Tensor, count: int) -> Graph:
        """From edges in ascending order of their targets."""
        degrees = torch.bincount(target, minlength=count)
        return cls(source, target, torch.cat([degrees.new_zeros(1), degrees.cumsum(0)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def drop(self, rate: float) -> Graph:
        """Without a random share of the edges between different spots."""
        kept = torch.rand(len(self.source), device=self.source.device) >= rate
        kept |= self.source == self.target
        return Graph.of(self.source[kept], self.target[kept], len(self))

    def reversed(self) -> tuple[Graph, torch.Tensor]:
        """Every edge turned around, and which edge of this graph each one was."""
        source, order = self.source.sort(stable=True)
        return Graph.of(self.target[order], source, len(self)), order

    def softmax(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Attention of each edge: the softmax over the edges into a spot.

        Args:
            source: (N, heads) share of the spot that an edge comes from in its score.
            target: (N, heads) share of the spot that it goes to.

        Returns:
            (E, heads).
        """
        into = self.target
        score = source.index_select(0, self.source) + target.index_select(0, into)
        score = F.leaky_relu(score, 0.2)
        index = into[:, None].expand_as(score)
        most = torch.full_like(target, -torch.inf).scatter_reduce(0, index, score.detach(), "amax")
        score = (score - most.index_select(0, into)).exp()
        total = torch.zeros_like(target).index_add(0, into, score)
        return score / total.index_select(0, into)

    def sums(self, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Weighted sums of what the edges bring to each spot, without a row for each edge.

        Args:
            weight: (E, heads).
            z: (N, heads * width), the heads side by side.

        Returns:
            (N, heads * width).
        """
        parts = zip(weight.unbind(1), z.chunk(weight.shape[1], dim=1), strict=True)
        return torch.cat([self._matrix(w.contiguous()) @ h.contiguous() for w, h in parts], dim=1)

    def products(self, z: torch.Tensor, grad: torch.Tensor, heads: int) -> torch.Tensor:
        """Of z where each edge comes from and grad where it goes to (N, heads * width): (E, heads).

        The gradient of ``sums`` to its weights.
        """
        step = max(1, (1 << 20) // z.shape[1])  # rows of so many edges stay in the cache
        edges = zip(self.source.split(step), self.target.split(step), strict=True)
        rows = (z.index_select(0, i) * grad.index_select(0, j) for i, j in edges)
        return torch.cat([some.unflatten(1, (heads, -1)).sum(dim=2) for some in rows])

    def _matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """(N, N) CSR with the weight (E,) of each edge in its target's row."""
        size = (len(self), len(self))
        with warnings.catch_warnings():
            # torch says once a process that its CSR tensors are in beta; products are tested
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self.offsets, self.source, weight, size, check_invariants=False
            )


@torch.no_grad()
def hub_graph(features: torch.Tensor, coords: torch.Tensor, clusters: int) -> Graph:
    """MERGE's graph: each spot and its nearest, clusters and their hubs, hubs and hubs.

    Nearest are eight, and all those about as near as the eighth (``nearest_spots``).

    Edges go both ways. Spots are clustered by their place, and again by their features, by k-means.
    The hub of a cluster is the spot whose features are nearest to their mean over the cluster; it
    is linked to all spots of its cluster, and all hubs to each other.

    Neither the order of the spots nor how the slide lies plays a part: spots are taken in the order
    of their features, of spots with the same from left to right, and k-means starts by one seed.

    Args:
        features: (N, D).
        coords: (N, 2) centers in one unit.
        clusters: of each kind; 0 for neighbors alone.
    """
    with torch.autocast(features.device.type, enabled=False):
        place = coords.double()
        place = place - place.amin(dim=0)
        keys = torch.cat([place.flip(1), features[:, :4].double()], dim=1).cpu().numpy()
        order = torch.from_numpy(np.lexsort(keys.T)).to(coords.device)
        features, place = features[order], place[order]
        links = [_fan(*nearest_spots(place, NEIGHBORS))]
        if clusters:
            links += _hub_links(features, place, clusters)
        source, target = order[torch.cat(links, dim=1)]
    count = len(order)
    own = torch.arange(count, device=order.device) * (count + 1)
    edges = torch.cat([target * count + source, source * count + target, own]).unique()
    return Graph.of(edges % count, edges // count, count)


def _fan(index: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """(N, K) neighbors and which of them there are to (2, E) links."""
    own = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
    return torch.stack([own[there], index[there]])


def _hub_links(features: torch.Tensor, place: torch.Tensor, clusters: int) -> list[torch.Tensor]:
    """Links of hubs to the spots of their clusters and to each other."""
    links, hubs = [], []
    for labels in (cluster(place, clusters), cluster(features, clusters)):
        for label in labels.unique():
            members = (labels == label).nonzero().squeeze(1)
            own = features[members]
            hub = members[(own - own.mean(dim=0)).square().sum(dim=1).argmin()]
            links.append(torch.stack([hub.expand_as(members), members]))
            hubs.append(hub)
    return [*links, torch.combinations(torch.stack(hubs)).T]


def cluster(points: torch.Tensor, count: int) -> torch.Tensor:
    """k-means: (N, d) points to (N,) int64 labels below ``count``; the same in every run.

    Starts are k-means++'s by a fixed seed, so equal points in equal order give equal clusters. Of
    fewer distinct points than ``count`` each is a cluster.
    """
    points = points - points.mean(dim=0)
    centers = _starts(points, count)
    labels = None
    for _ in range(ROUNDS):
        before, labels = labels, _nearest(points, centers)
        if before is not None and torch.equal(before, labels):
            break
        member = F.one_hot(labels, len(centers)).to(points)
        sizes = member.sum(dim=0)[:, None]
        centers = torch.where(sizes > 0, member.T @ points / sizes.clamp(min=1), centers)
    return labels


def _nearest(points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    distance = centers.square().sum(dim=1) - 2 * points @ centers.T
    unit = points.square().sum(dim=1).mean().clamp(min=torch.finfo(points.dtype).tiny)
    # between centers that are equally near, as on arrays, rounding has no say
    return (distance / unit).round(decimals=6).argmin(dim=1)


def _starts(points: torch.Tensor, count: int) -> torch.Tensor:
    """k-means++: each start is drawn by the squared distance to the nearest one before."""
    generator = torch.Generator().manual_seed(0)
    gap, chosen = points.new_ones(len(points)), []
    while len(chosen) < count and gap.any():
        # as float64 on the CPU: a draw does not depend on the device, nor sum badly
        drawn = torch.multinomial(gap.double().cpu(), 1, generator=generator)
        chosen.append(points[drawn.to(points.device)])
        distance = (points - chosen[-1]).square().sum(dim=1)
        gap = distance if len(chosen) == 1 else torch.minimum(gap, distance)
    return torch.cat(chosen)
