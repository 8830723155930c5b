"""RecBole's popularity baseline with correct counts."""

import torch
from recbole.model.general_recommender.pop import Pop as StockPop


class Pop(StockPop):
    """Counts every training event once.

    RecBole's class adds 1 for each *batch* in which an item occurs (`cnt[item] += 1` keeps one of
    equal indices), so that its ranking depends on the batch size and most items tie. With the
    default settings it also counts a random negative for each event.
    """

    def calculate_loss(self, interaction):
        """Count the items of a batch; the loss is 0."""
        item = interaction[self.ITEM_ID]
        self.item_cnt.index_add_(0, item, torch.ones_like(item)[:, None])
        self.max_cnt = self.item_cnt.max(dim=0)[0]
        return self.fake_loss.sum() * 0.0
