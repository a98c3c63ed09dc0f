package script

// PlacedByReconciler leaves placement to one of the world's reconcilers: with auto on, nodes only do what they are told.
func (w *World) PlacedByReconciler() { w.nodes.placed = true }
